//! A copy of a VM file, to be edited, which takes the file's place when it is good.

use std::{
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    spec::{self, Invalid, Problem, Vm, check::across},
    sys::file,
    value::Explain,
};

/// What the name of the copy's directory begins with; nothing that lists VM files looks into it.
const DIRECTORY: &str = ".qvm-edit_";

/// Why a VM file cannot be edited, or the copy not take its place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("there is no VM file `{}`", .0.display())]
    Missing(PathBuf),
    /// It is a link that leads nowhere, or in a place that may not be entered.
    #[error("cannot find what `{}` is", .0.display())]
    Lost(PathBuf, #[source] io::Error),
    /// It is a directory, a device, or the like.
    #[error("`{}` is not a file", .0.display())]
    NotAFile(PathBuf),
    /// Nix made it.
    #[error("`{}` is in the Nix store, where nothing changes", .0.display())]
    Store(PathBuf),
    /// Somebody else changed it.
    #[error("`{}` was changed by somebody else meanwhile, and is left as it is", .file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// Where what was edited is kept.
        copy: PathBuf,
    },
    /// The copy cannot take the file's place.
    #[error("what was written is in `{}` and not in its place", .copy.display())]
    Kept {
        /// The copy.
        copy: PathBuf,
        /// Why.
        source: file::Error,
    },
    /// The host does not let it.
    #[error(transparent)]
    File(#[from] file::Error),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) | Self::Kept { source: error, .. } => Some(error),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("`qvm new NAME` makes one".to_owned()),
            Self::Store(_) => Some("change it in the NixOS configuration that makes it".to_owned()),
            Self::Changed { file, copy } => Some(format!(
                "what you wrote is in `{0}`: `diff {1} {0}`",
                copy.display(),
                file.display()
            )),
            _ => None,
        }
    }
}

/// The copy; removed in the end, unless it is all that is left of somebody's work. One whose `qvm edit` was killed is never removed.
#[derive(Debug)]
pub struct Edited {
    /// The file as it is named.
    file: PathBuf,
    /// The file itself, which a symbolic link may have led to.
    target: PathBuf,
    /// How it was found.
    before: Vec<u8>,
    like: Metadata,
    copy: PathBuf,
    /// The copy's directory, with what the editor puts beside it; `None` once it is to stay.
    dir: Option<TempDir>,
}

impl Edited {
    /// Copies the VM file `file` under its own name, by whose ending editors know the language, into a directory of its own beside
    /// it: no program that looks for files of that ending finds it there.
    ///
    /// # Errors
    /// It is not there, or is no file, or its directory cannot be written.
    pub fn begin(file: &Path) -> Result<Self, Error> {
        if let Err(error) = file.symlink_metadata() {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => Error::Missing(file.to_owned()),
                _ => Error::Lost(file.to_owned(), error),
            });
        }
        let target = file.canonicalize().map_err(|error| Error::Lost(file.to_owned(), error))?;
        let like = fs::metadata(&target).map_err(|error| Error::Lost(target.clone(), error))?;
        if !like.is_file() {
            return Err(Error::NotAFile(target));
        }
        if target.starts_with("/nix/store") {
            return Err(Error::Store(target));
        }
        let before = fs::read(&target).map_err(file::Error::on("read", &target))?;
        let beside = target.parent().unwrap_or(Path::new("/"));
        let dir = tempfile::Builder::new().prefix(DIRECTORY).tempdir_in(beside);
        let dir = dir.map_err(file::Error::on("make a directory in", beside))?;
        let copy = dir.path().join(target.file_name().unwrap_or_default());
        file::write_volatile(&copy, &before, 0o600)?;
        Ok(Self { file: file.to_owned(), target, before, like, copy, dir: Some(dir) })
    }

    /// What is to be edited.
    pub fn copy(&self) -> &Path {
        &self.copy
    }

    /// The copy is what the file was when it was copied.
    ///
    /// # Errors
    /// The copy is gone.
    pub fn is_unchanged(&self) -> Result<bool, Error> {
        Ok(fs::read(&self.copy).map_err(file::Error::on("read", &self.copy))? == self.before)
    }

    /// What the copy would be as the VM file, by itself and beside the others.
    ///
    /// # Errors
    /// Every problem.
    pub fn check(&self) -> Result<(), Invalid> {
        let vm = spec::load_in_place(&self.copy, &self.file)?;
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        let (mut beside, mut unread): (Vec<Vm>, Vec<_>) = (vec![], vec![]);
        for (file, other) in spec::load_all(dir) {
            match other {
                Ok(other) if other.name != vm.name => beside.push(other),
                Ok(_) => {}
                Err(_) => unread.extend(spec::name_of(&file)),
            }
        }
        // Of two that claim the same, the last is told so.
        let all: Vec<&Vm> = beside.iter().chain([&vm]).collect();
        let problems = across(&all, &unread).into_iter().filter(|p| p.file == self.file);
        match problems.collect::<Vec<Problem>>() {
            none if none.is_empty() => Ok(()),
            problems => Err(Invalid(problems)),
        }
    }

    /// Puts the copy in the file's place, with its mode and owner.
    ///
    /// # Errors
    /// Somebody else has changed the file meanwhile, or the host does not let it: the copy is kept then.
    pub fn finish(mut self) -> Result<(), Error> {
        let dir = self.dir.take().map(TempDir::keep);
        if fs::read(&self.target).ok().as_ref() != Some(&self.before) {
            return Err(Error::Changed { file: self.target.clone(), copy: self.copy.clone() });
        }
        file::replace(&self.copy, &self.target, &self.like)
            .map_err(|source| Error::Kept { copy: self.copy.clone(), source })?;
        // Whatever the editor put beside the copy has done its service.
        let _ = dir.map(fs::remove_dir_all);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        file::list(dir).unwrap().iter().map(name).collect()
    }

    #[test]
    fn a_links_target_changes_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (vms, git) = (dir.path().join("vms"), dir.path().join("git"));
        fs::create_dir(&vms).unwrap();
        fs::create_dir(&git).unwrap();
        let (target, file) = (git.join("web.txt"), vms.join("web.toml"));
        fs::write(&target, "vcpu = 1\n").unwrap();
        file::set_mode(&target, 0o604).unwrap();
        symlink(&target, &file).unwrap();
        let edited = Edited::begin(&file).unwrap();
        let [beside, own] = &names(&git)[..] else { panic!("{:?}", names(&git)) };
        assert!(beside.starts_with(DIRECTORY) && own == "web.txt", "{beside}");
        assert_eq!(edited.copy(), git.join(beside).join("web.txt"), "editors know the language");
        assert!(edited.is_unchanged().unwrap());
        assert!(edited.check().is_ok());
        fs::write(edited.copy(), "vcpu = 2\n").unwrap();
        assert!(!edited.is_unchanged().unwrap());
        edited.finish().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 2\n");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o604);
        assert!(file.symlink_metadata().unwrap().is_symlink());
        assert_eq!(names(&git), ["web.txt"]);
    }

    #[test]
    fn somebody_elses_change_is_not_overwritten_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.toml");
        fs::write(&file, "vcpu = 1\n").unwrap();
        let edited = Edited::begin(&file).unwrap();
        fs::write(edited.copy(), "vcpu = 2\n").unwrap();
        fs::write(&file, "vcpu = 3\n").unwrap();
        let refused = edited.finish().unwrap_err();
        let Error::Changed { copy, .. } = &refused else { panic!("{refused}") };
        assert!(refused.hint().unwrap().contains(&*copy.to_string_lossy()), "{refused}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 3\n");
        assert_eq!(fs::read_to_string(copy).unwrap(), "vcpu = 2\n");
    }

    #[test]
    fn a_copy_that_cannot_take_the_place_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.toml");
        fs::write(&file, "vcpu = 1\n").unwrap();
        let edited = Edited::begin(&file).unwrap();
        fs::remove_file(edited.copy()).unwrap();
        fs::create_dir(edited.copy()).unwrap();
        let refused = edited.finish().unwrap_err();
        let told = crate::value::chain(&refused);
        assert!(told.contains("/web.toml` and not in its place: cannot "), "{told}");
        let Error::Kept { copy, .. } = &refused else { panic!("{refused}") };
        assert!(copy.exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), "vcpu = 1\n");
    }

    #[test]
    fn problems_name_the_file_and_the_others_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.toml");
        fs::write(&file, "vcpu = 1\n").unwrap();
        fs::write(dir.path().join("db.toml"), "forward = [\"2222:22\"]\n").unwrap();
        let edited = Edited::begin(&file).unwrap();
        fs::write(edited.copy(), "forward = [\"2222:22\"]\n").unwrap();
        let problem = edited.check().unwrap_err().to_string();
        assert!(problem.contains("web.toml:1: forward: ") && problem.contains("`db`"), "{problem}");
        fs::write(edited.copy(), "vcpus = 1\n").unwrap();
        let problem = edited.check().unwrap_err().to_string();
        assert!(problem.contains("/web.toml:1:1: vcpus: "), "{problem}");
        drop(edited);
        assert_eq!(names(dir.path()), ["db.toml", "web.toml"]);
    }

    #[test]
    fn what_cannot_be_edited() {
        let dir = tempfile::tempdir().unwrap();
        let begin = |name: &str| Edited::begin(&dir.path().join(name)).unwrap_err();
        assert!(matches!(begin("none.toml"), Error::Missing(_)));
        symlink("nowhere", dir.path().join("lost.toml")).unwrap();
        assert!(matches!(begin("lost.toml"), Error::Lost(..)));
        fs::create_dir(dir.path().join("dir.toml")).unwrap();
        assert!(matches!(begin("dir.toml"), Error::NotAFile(_)));
    }
}
