//! Renames files and directories without replacing an existing one.

use std::{fs, io, path::Path};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

/// The errors of a file system without support for a flag of renameat2(2).
const UNKNOWN: [Errno; 3] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];

/// Renames `from` to `to`, which must not exist.
///
/// # Errors
/// `AlreadyExists` if `to` exists; or the rename fails.
pub fn no_replace(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(error) if UNKNOWN.contains(&error) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        done => Ok(done?),
    }
}

/// Replaces the symbolic link `link` by its target, the directory `from` beside it: at every
/// instant `link` refers to the content. If the file system cannot exchange two names (NFS, ZFS
/// before 2.2), `link` does not exist between two system calls, but a link with another name refers
/// to the content.
///
/// # Errors
/// The directory or the link cannot be renamed.
pub fn replace_link(from: &Path, link: &Path) -> io::Result<()> {
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
    fn existing_name_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        assert_eq!(no_replace(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_dir(&to).unwrap();
        no_replace(&from, &to).unwrap();
        assert!(to.is_dir() && !from.exists());
    }

    #[test]
    fn directory_replaces_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (from, link) = (dir.path().join("from"), dir.path().join("link"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("x"), "content").unwrap();
        symlink("from", &link).unwrap();
        replace_link(&from, &link).unwrap();
        assert!(link.symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read(link.join("x")).unwrap(), b"content");
        assert!(from.symlink_metadata().is_err());
    }
}
