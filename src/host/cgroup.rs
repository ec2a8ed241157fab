//! A VM's own cgroup, for its CPU weight, where systemd has not made one.
//!
//! Documentation/admin-guide/cgroup-v2.rst of the kernel is the source of every file name here.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    plan::weights,
    value::{CpuWeight, VmName},
};

/// Why a weight could not be given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A control file did not take a value.
    #[error("failed to write `{value}` to `{}`", path.display())]
    Write {
        /// What was written.
        value: String,
        /// The control file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A cgroup could not be made.
    #[error("cannot make the cgroup `{}`", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A cgroup could not be removed.
    #[error("cannot remove the cgroup `{}`", path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        let (Self::Write { source, .. } | Self::Make { source, .. } | Self::Remove { source, .. }) =
            self;
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(
                "CPU weights need root, or systemd (`systemctl start qvm@NAME`); leave `cpuWeight` out \
                 to go on without"
                    .into(),
            ),
            // The "no internal processes" rule.
            io::ErrorKind::ResourceBusy => Some(
                "a cgroup with processes of its own cannot give its controllers on, as at the top of a \
                 container; leave `cpuWeight` out to go on without"
                    .into(),
            ),
            io::ErrorKind::NotFound => Some(
                "the cpu controller is not to be had here: see `cgroup.controllers` beside it; leave \
                 `cpuWeight` out to go on without"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// The cgroup of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes `qvm/NAME` below `root` (from [`weights::root`]) and has the cpu controller given down to it. What is
    /// there already stays.
    ///
    /// # Errors
    /// Mostly a missing right: only root, or who was delegated the hierarchy, may do this.
    pub fn make(root: &Path, name: &VmName) -> Result<Self, Error> {
        let directory = weights::of_vm(root, name);
        let all = directory.parent().unwrap_or(root);
        give_cpu_down(root)?;
        make_directory(all)?;
        give_cpu_down(all)?;
        make_directory(&directory)?;
        Ok(Self { directory })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sets the weight, at once for all that is in the cgroup.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_weight(&self, weight: CpuWeight) -> Result<(), Error> {
        write(&self.directory.join("cpu.weight"), &weight.to_string())
    }

    /// Moves a process into the cgroup, with all of its threads.
    ///
    /// # Errors
    /// As the kernel says: `ESRCH` where the process has ended.
    pub fn take_in(&self, pid: u32) -> Result<(), Error> {
        write(&self.directory.join("cgroup.procs"), &pid.to_string())
    }

    /// Removes the cgroup, if nothing is in it any more; one that is gone, or in use again, is left alone.
    ///
    /// `qvm` above it stays: another VM may be about to make its own.
    ///
    /// # Errors
    /// A missing right.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir(&self.directory) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(Error::Remove { path: self.directory.clone(), source }),
        }
    }
}

/// The weight in force in a cgroup, whoever made it; `None` where it has none.
pub fn weight(directory: &Path) -> Option<CpuWeight> {
    weights::read(&fs::read_to_string(directory.join("cpu.weight")).ok()?)
}

/// The cgroup of a process below `root`; `proc` is `/proc`.
pub fn of_process(root: &Path, proc: &Path, pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
    weights::of_process(root, &text)
}

/// Turns the cpu controller on for the children of a cgroup.
fn give_cpu_down(directory: &Path) -> Result<(), Error> {
    let path = directory.join("cgroup.subtree_control");
    let on =
        fs::read_to_string(&path).is_ok_and(|on| on.split_whitespace().any(|name| name == "cpu"));
    // Not written again: a plain user with a delegated subtree may not write to what is above it.
    if on { Ok(()) } else { write(&path, "+cpu") }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Make { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Writes a control file, which is there or cannot be: the kernel makes them, nobody else.
fn write(path: &Path, value: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::Write { value: value.to_owned(), path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a cgroup hierarchy, with the files that the kernel would make.
    fn hierarchy() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("qvm/web")).unwrap();
        for file in [
            "cgroup.subtree_control",
            "qvm/cgroup.subtree_control",
            "qvm/web/cpu.weight",
            "qvm/web/cgroup.procs",
        ] {
            fs::write(root.path().join(file), "").unwrap();
        }
        root
    }

    fn web() -> VmName {
        "web".parse().unwrap()
    }

    fn said(root: &Path, file: &str) -> String {
        fs::read_to_string(root.join(file)).unwrap()
    }

    #[test]
    fn a_weight_is_given_by_four_writes() {
        let root = hierarchy();
        let root = root.path();
        for _ in 0..2 {
            let cgroup = Cgroup::make(root, &web()).unwrap();
            cgroup.set_weight(CpuWeight::try_from(300).unwrap()).unwrap();
            cgroup.take_in(4711).unwrap();
            assert_eq!(cgroup.directory(), root.join("qvm/web"));
            assert_eq!(weight(cgroup.directory()).map(CpuWeight::get), Some(300));
        }
        assert_eq!(said(root, "cgroup.subtree_control"), "+cpu");
        assert_eq!(said(root, "qvm/cgroup.subtree_control"), "+cpu");
        assert_eq!(said(root, "qvm/web/cpu.weight"), "300");
        assert_eq!(said(root, "qvm/web/cgroup.procs"), "4711");
    }

    #[test]
    fn a_controller_that_is_on_is_left_alone() {
        let root = hierarchy();
        for file in ["cgroup.subtree_control", "qvm/cgroup.subtree_control"] {
            fs::write(root.path().join(file), "cpuset cpu io\n").unwrap();
        }
        Cgroup::make(root.path(), &web()).unwrap();
        assert_eq!(said(root.path(), "cgroup.subtree_control"), "cpuset cpu io\n");
        // `cpuset` alone is not `cpu`.
        fs::write(root.path().join("cgroup.subtree_control"), "cpuset\n").unwrap();
        Cgroup::make(root.path(), &web()).unwrap();
        assert_eq!(said(root.path(), "cgroup.subtree_control"), "+cpu");
    }

    #[test]
    fn the_directory_is_made_where_it_is_missing() {
        let root = hierarchy();
        fs::remove_dir_all(root.path().join("qvm/web")).unwrap();
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        assert!(cgroup.directory().is_dir());
        // No file is ever made: where the kernel has none, there is no such controller.
        let error = cgroup.set_weight(CpuWeight::try_from(300).unwrap()).unwrap_err();
        let path = root.path().join("qvm/web/cpu.weight");
        assert_eq!(error.to_string(), format!("failed to write `300` to `{}`", path.display()));
        assert!(error.hint().unwrap().contains("cgroup.controllers"));
        assert!(!path.exists());
        assert_eq!(weight(cgroup.directory()), None);
    }

    #[test]
    fn it_is_removed_once_and_not_while_in_use() {
        let root = hierarchy();
        fs::remove_dir_all(root.path().join("qvm/web")).unwrap();
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.directory().exists());
        cgroup.remove().unwrap();
        assert!(root.path().join("qvm").is_dir());
    }

    #[test]
    fn a_missing_right_says_who_may() {
        let error = Error::Write {
            value: "+cpu".into(),
            path: "/sys/fs/cgroup/cgroup.subtree_control".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert_eq!(
            error.to_string(),
            "failed to write `+cpu` to `/sys/fs/cgroup/cgroup.subtree_control`"
        );
        assert!(error.hint().unwrap().starts_with("CPU weights need root, or systemd"));
    }

    #[test]
    fn a_process_leads_to_its_cgroup() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("4711")).unwrap();
        fs::write(proc.path().join("4711/cgroup"), "0::/qvm/web\n").unwrap();
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(of_process(root, proc.path(), 4711), Some(root.join("qvm/web")));
        assert_eq!(of_process(root, proc.path(), 4712), None);
    }
}
