//! Other names for files and directories, without ever taking a name that is in use.

use std::{fs, io, path::Path};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

/// What a file system says that does not know a flag of renameat2(2).
const UNKNOWN: [Errno; 3] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];

/// Gives `from` the name `to`, which nothing may have.
///
/// # Errors
/// `AlreadyExists` where something has it; or it cannot be renamed.
pub fn to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(error) if UNKNOWN.contains(&error) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        done => Ok(done?),
    }
}

/// Puts the directory `from` in the place of `link`, a symbolic link beside it that leads to it: at every instant `link` leads
/// to its content. Where the file system cannot exchange two names (NFS, ZFS before 2.2), there is an instant between two
/// system calls at which there is nothing called `link`; yet a link of another name leads there all the time.
///
/// # Errors
/// It stays where it is, or the link stays at its place.
pub fn over_link(from: &Path, link: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, link, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_file(from),
        Err(error) if UNKNOWN.contains(&error) => {
            let name = link.file_name().unwrap_or_default().to_string_lossy();
            let aside = link.with_file_name(format!(".qvm-link-{name}"));
            fs::rename(link, &aside)?;
            fs::rename(from, link)?;
            fs::remove_file(aside)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_name_in_use_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        assert_eq!(to_free(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_dir(&to).unwrap();
        to_free(&from, &to).unwrap();
        assert!(to.is_dir() && !from.exists());
    }

    #[test]
    fn a_directory_takes_the_place_of_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (from, link) = (dir.path().join("from"), dir.path().join("link"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("x"), "content").unwrap();
        symlink("from", &link).unwrap();
        over_link(&from, &link).unwrap();
        assert!(link.symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read(link.join("x")).unwrap(), b"content");
        assert!(from.symlink_metadata().is_err());
    }
}
