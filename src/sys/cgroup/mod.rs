//! The cgroup of a VM: created and configured by qvm if systemd does not, and read in either case.
//!
//! File names: Documentation/admin-guide/cgroup-v2.rst of the kernel.

pub mod weights;

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use self::weights::Level;
use crate::value::{ErrorCode, Explain, VmName};

/// Why a cgroup cannot be created or configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount table cannot be read.
    #[error("cannot read `{}`", path.display())]
    Mounts {
        /// The mount table.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No usable cgroup v2 exists.
    #[error(transparent)]
    Root(#[from] weights::Error),
    /// A control file rejected a value.
    #[error("cannot write `{value}` to `{}`", path.display())]
    Write {
        /// The value.
        value: String,
        /// The control file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A cgroup cannot be created.
    #[error("cannot create the cgroup `{}`", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A cgroup cannot be removed.
    #[error("cannot remove the cgroup `{}`", path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Root(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Mounts { .. } | Self::Write { .. } | Self::Make { .. } | Self::Remove { .. } => {
                ErrorCode::CgroupFailed
            }
            Self::Root(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        let source = match self {
            Self::Root(_) => return None,
            Self::Mounts { source, .. }
            | Self::Write { source, .. }
            | Self::Make { source, .. }
            | Self::Remove { source, .. } => source,
        };
        let hint = match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "run qvm as root, or start the VM with systemd (`systemctl start qvm@NAME`)"
            }
            // The "no internal processes" rule.
            io::ErrorKind::ResourceBusy => {
                "a cgroup that contains processes cannot enable controllers for its children; \
                 this is the case at the root of a container"
            }
            io::ErrorKind::NotFound => {
                "the controller is not available: see `cgroup.controllers` in the same directory"
            }
            _ => return None,
        };
        Some(hint.into())
    }
}

/// A value for one control file of the VM's cgroup (cgroup-v2.rst, "Controllers").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The key of the VM file.
    pub key: &'static str,
    /// The controller that the cgroup needs.
    pub controller: &'static str,
    /// The name of the control file.
    pub file: &'static str,
    /// The value.
    pub value: String,
    /// The VM file sets the key. If not, an existing file is reset to the kernel's default.
    pub wanted: bool,
}

/// The cgroup of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Creates `qvm/NAME` below `root` (see [`root`]) if it does not exist.
    ///
    /// # Errors
    /// Usually missing privileges: only root or the owner of a delegated hierarchy may create
    /// cgroups.
    pub fn make(root: &Path, name: &VmName) -> Result<Self, Error> {
        let directory = weights::of_vm(root, name);
        if let Some(all) = directory.parent() {
            make_directory(all)?;
        }
        make_directory(&directory)?;
        Ok(Self { directory })
    }

    /// Returns the directory of the cgroup.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Enables the controller in all ancestors and writes the control file. The value applies
    /// immediately to all processes of the cgroup.
    ///
    /// # Errors
    /// The kernel rejects a write.
    pub fn set(&self, setting: &Setting) -> Result<(), Error> {
        let path = self.directory.join(setting.file);
        if !setting.wanted && !path.exists() {
            return Ok(());
        }
        // `qvm` and the directory above it.
        for above in self.directory.ancestors().skip(1).take(2).collect::<Vec<_>>().iter().rev() {
            enable_controller(above, setting.controller)?;
        }
        write(&path, &setting.value)
    }

    /// Moves a process with all its threads into the cgroup.
    ///
    /// # Errors
    /// The kernel rejects the write; `ESRCH` if the process has ended.
    pub fn add_process(&self, pid: u32) -> Result<(), Error> {
        write(&self.directory.join("cgroup.procs"), &pid.to_string())
    }

    /// Removes the cgroup if it contains no process. A cgroup that does not exist or is in use is
    /// no error.
    ///
    /// The parent `qvm` is not removed: another VM may be creating its own cgroup in it.
    ///
    /// # Errors
    /// Missing privileges.
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

/// Returns the root of the cgroup v2 hierarchy; `proc` is `/proc`.
///
/// # Errors
/// No cgroup v2 hierarchy has the cpu controller.
pub fn root(proc: &Path) -> Result<PathBuf, Error> {
    let path = proc.join("self/mountinfo");
    let table = fs::read_to_string(&path).map_err(|source| Error::Mounts { path, source })?;
    Ok(weights::root(&table)?)
}

/// The cgroup controllers of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// The mount point of cgroup v2, or why it cannot be used.
    pub root: Result<PathBuf, weights::Error>,
    /// cgroup v2 is mounted, but its controllers may belong to v1: the "hybrid" layout.
    pub hybrid: bool,
    /// The controllers at the root (`cgroup.controllers`).
    pub available: Vec<String>,
    /// The cgroup of all VMs, or the root if no VM has run yet.
    pub of_vms: String,
    /// The controllers that are enabled for the children of `of_vms` (`cgroup.subtree_control`).
    pub enabled: Vec<String>,
}

/// Returns the cgroup configuration of the host. `host` is `/`; `user` means that VMs are units of
/// a user manager.
pub fn inspect(host: &Path, user: bool) -> Cgroups {
    let proc = host.join("proc");
    let table = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let hybrid = table.contains(" - cgroup2 ");
    let root = match weights::root(&table) {
        Ok(root) => root,
        Err(error) => {
            let (available, enabled) = (Vec::new(), Vec::new());
            return Cgroups { root: Err(error), hybrid, available, of_vms: String::new(), enabled };
        }
    };
    let below = |path: &Path| host.join(path.strip_prefix("/").unwrap_or(path));
    // A user manager cannot enable controllers above its own cgroup.
    let own = || of_process(&root, &proc, std::process::id());
    let is_manager = |path: &&Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("user@"))
    };
    let of_user = || Some(own()?.ancestors().find(is_manager)?.to_owned());
    let top = user.then(of_user).flatten().unwrap_or_else(|| root.clone());
    let of_vms = ["qvm.slice", "qvm"].into_iter().map(|name| top.join(name));
    let of_vms =
        of_vms.into_iter().find(|path| below(path).is_dir()).unwrap_or_else(|| top.clone());
    let list = |directory: &Path, file: &str| {
        let text = fs::read_to_string(below(directory).join(file)).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    Cgroups {
        available: list(&top, "cgroup.controllers"),
        enabled: list(&of_vms, "cgroup.subtree_control"),
        of_vms: of_vms.display().to_string(),
        root: Ok(root),
        hybrid,
    }
}

/// Returns the cgroup of a process below `root`; `proc` is `/proc`.
pub fn of_process(root: &Path, proc: &Path, pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
    weights::of_process(root, &text)
}

/// Returns true if the OOM killer has killed a process of the cgroup (memory.events,
/// cgroup-v2.rst).
pub fn was_oom_killed(directory: &Path) -> bool {
    let events = fs::read_to_string(directory.join("memory.events")).unwrap_or_default();
    events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
}

/// The weights of a hierarchy. Each directory is read only once, since many VMs share ancestors.
#[derive(Debug)]
pub struct Weights {
    root: PathBuf,
    /// For each directory, its child cgroups with processes and their weights; 0 is idle, `None`
    /// means no controller.
    read: HashMap<PathBuf, BTreeMap<OsString, Option<u16>>>,
}

impl Weights {
    /// Returns an empty cache for the hierarchy at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root, read: HashMap::new() }
    }

    /// Returns the levels from the root to a cgroup.
    pub fn levels(&mut self, directory: &Path) -> Vec<Level> {
        let below = directory.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let mut at = self.root.clone();
        let mut levels = Vec::new();
        for part in below {
            let all = self.read.entry(at.clone()).or_insert_with(|| weights_below(&at));
            let own = all.get(part).copied().flatten();
            let others = all.iter().filter(|(name, _)| *name != part);
            let siblings = others.filter_map(|(_, weight)| *weight).collect();
            levels.push(Level { parent: at.clone(), own, siblings });
            at.push(part);
        }
        levels
    }
}

fn weights_below(directory: &Path) -> BTreeMap<OsString, Option<u16>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let cgroups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let populated = cgroups.filter(|entry| {
        let events = fs::read_to_string(entry.path().join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    });
    let weight = |directory: &Path| {
        let text = fs::read_to_string(directory.join("cpu.weight")).ok()?;
        text.trim().parse().ok()
    };
    populated.map(|entry| (entry.file_name(), weight(&entry.path()))).collect()
}

/// Enables a controller for the children of a cgroup.
fn enable_controller(directory: &Path, controller: &str) -> Result<(), Error> {
    let path = directory.join("cgroup.subtree_control");
    let on = fs::read_to_string(&path)
        .is_ok_and(|on| on.split_whitespace().any(|name| name == controller));
    // An enabled controller is not written again: an unprivileged user with a delegated subtree may
    // not write to ancestors.
    if on { Ok(()) } else { write(&path, &format!("+{controller}")) }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::Make { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Writes an existing control file. Only the kernel creates control files.
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

    /// A directory with the files of a cgroup hierarchy.
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

    fn read_file(root: &Path, file: &str) -> String {
        fs::read_to_string(root.join(file)).unwrap()
    }

    fn weight(value: &str, wanted: bool) -> Setting {
        let value = value.to_owned();
        Setting { key: "cpuWeight", controller: "cpu", file: "cpu.weight", value, wanted }
    }

    #[test]
    fn weight_is_set_by_four_writes() {
        let root = hierarchy();
        let root = root.path();
        for _ in 0..2 {
            let cgroup = Cgroup::make(root, &web()).unwrap();
            cgroup.set(&weight("300", true)).unwrap();
            cgroup.add_process(4711).unwrap();
            assert_eq!(cgroup.directory(), root.join("qvm/web"));
        }
        assert_eq!(read_file(root, "cgroup.subtree_control"), "+cpu");
        assert_eq!(read_file(root, "qvm/cgroup.subtree_control"), "+cpu");
        assert_eq!(read_file(root, "qvm/web/cpu.weight"), "300");
        assert_eq!(read_file(root, "qvm/web/cgroup.procs"), "4711");
        // A value that was removed from the VM file is reset.
        let cgroup = Cgroup::make(root, &web()).unwrap();
        cgroup.set(&weight("100", false)).unwrap();
        assert_eq!(read_file(root, "qvm/web/cpu.weight"), "100");
    }

    #[test]
    fn unset_key_enables_no_controller() {
        let root = hierarchy();
        fs::remove_file(root.path().join("qvm/web/cpu.weight")).unwrap();
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        cgroup.set(&weight("100", false)).unwrap();
        assert_eq!(read_file(root.path(), "cgroup.subtree_control"), "");
        assert!(!root.path().join("qvm/web/cpu.weight").exists());
    }

    #[test]
    fn enabled_controller_is_not_written() {
        let root = hierarchy();
        for file in ["cgroup.subtree_control", "qvm/cgroup.subtree_control"] {
            fs::write(root.path().join(file), "cpuset cpu io\n").unwrap();
        }
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        cgroup.set(&weight("300", true)).unwrap();
        assert_eq!(read_file(root.path(), "cgroup.subtree_control"), "cpuset cpu io\n");
        // `cpuset` alone is not `cpu`.
        fs::write(root.path().join("cgroup.subtree_control"), "cpuset\n").unwrap();
        cgroup.set(&weight("300", true)).unwrap();
        assert_eq!(read_file(root.path(), "cgroup.subtree_control"), "+cpu");
    }

    #[test]
    fn missing_directory_is_created() {
        let root = hierarchy();
        fs::remove_dir_all(root.path().join("qvm/web")).unwrap();
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        assert!(cgroup.directory().is_dir());
        // A control file is never created: without it the controller does not exist.
        let error = cgroup.set(&weight("300", true)).unwrap_err();
        let path = root.path().join("qvm/web/cpu.weight");
        assert_eq!(error.to_string(), format!("cannot write `300` to `{}`", path.display()));
        assert!(error.hint().unwrap().contains("cgroup.controllers"));
        assert!(!path.exists());
    }

    #[test]
    fn only_populated_siblings_count() {
        let root = tempfile::tempdir().unwrap();
        for (cgroup, weight, populated) in [
            ("qvm.slice", Some("200"), true),
            ("system.slice", Some("100"), true),
            ("dev-hugepages.mount", Some("100"), false),
            ("qvm.slice/qvm@web.service", Some("300"), true),
            ("qvm.slice/qvm@db.service", Some("100"), true),
            ("qvm.slice/qvm@idle.service", Some("0"), true),
            ("qvm.slice/qvm@old.service", Some("100"), false),
            ("bare.slice", None, true),
        ] {
            let directory = root.path().join(cgroup);
            fs::create_dir_all(&directory).unwrap();
            let events = format!("populated {}\nfrozen 0\n", u8::from(populated));
            fs::write(directory.join("cgroup.events"), events).unwrap();
            if let Some(weight) = weight {
                fs::write(directory.join("cpu.weight"), format!("{weight}\n")).unwrap();
            }
        }
        let slice = root.path().join("qvm.slice");
        let mut weights = Weights::new(root.path().to_owned());
        for _ in 0..2 {
            let levels = weights.levels(&slice.join("qvm@web.service"));
            assert_eq!(
                levels,
                [
                    Level { parent: root.path().into(), own: Some(200), siblings: vec![100] },
                    Level { parent: slice.clone(), own: Some(300), siblings: vec![100, 0] },
                ]
            );
        }
        let bare = weights.levels(&root.path().join("bare.slice"));
        assert_eq!(bare[0].own, None);
        assert_eq!(weights.levels(Path::new("/elsewhere")), []);
    }

    #[test]
    fn slice_reports_its_enabled_controllers() {
        let host = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let none = inspect(host.path(), false);
        assert_eq!(none.root, Err(weights::Error::NotMounted));
        let mount = "35 24 0:30 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n";
        write("proc/self/mountinfo", mount);
        write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        write("sys/fs/cgroup/cgroup.subtree_control", "cpu memory\n");
        let before = inspect(host.path(), false);
        assert_eq!(before.root.as_deref(), Ok(Path::new("/sys/fs/cgroup")));
        assert_eq!((before.of_vms.as_str(), before.enabled.len()), ("/sys/fs/cgroup", 2));
        write("sys/fs/cgroup/qvm.slice/cgroup.subtree_control", "cpu\n");
        let slice = inspect(host.path(), false);
        assert_eq!(
            (slice.of_vms.as_str(), slice.enabled),
            ("/sys/fs/cgroup/qvm.slice", vec!["cpu".to_owned()])
        );
        assert_eq!(slice.available.len(), 5);
        // For a user manager only its own cgroup counts.
        let manager = "user.slice/user-1000.slice/user@1000.service";
        let own = format!("proc/{}/cgroup", std::process::id());
        write(&own, &format!("0::/{manager}/app.slice/x.scope\n"));
        write(&format!("sys/fs/cgroup/{manager}/cgroup.controllers"), "memory pids\n");
        let user = inspect(host.path(), true);
        assert_eq!((user.of_vms, user.available.len()), (format!("/sys/fs/cgroup/{manager}"), 2));
        let cpu = "36 35 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        write("proc/self/mountinfo", &format!("{cpu}{mount}"));
        let hybrid = inspect(host.path(), false);
        assert!(hybrid.hybrid && hybrid.root.is_err());
    }

    #[test]
    fn oom_kill_is_detected() {
        let cgroup = tempfile::tempdir().unwrap();
        for (events, seen) in
            [("oom 0\noom_kill 0\n", false), ("oom 3\noom_kill 1\noom_group_kill 0\n", true)]
        {
            fs::write(cgroup.path().join("memory.events"), events).unwrap();
            assert_eq!(was_oom_killed(cgroup.path()), seen);
        }
        assert!(!was_oom_killed(Path::new("/nonexistent")));
    }

    #[test]
    fn used_cgroup_is_not_removed() {
        let root = hierarchy();
        fs::remove_dir_all(root.path().join("qvm/web")).unwrap();
        let cgroup = Cgroup::make(root.path(), &web()).unwrap();
        cgroup.remove().unwrap();
        assert!(!cgroup.directory().exists());
        cgroup.remove().unwrap();
        assert!(root.path().join("qvm").is_dir());
    }

    #[test]
    fn missing_privilege_has_a_hint() {
        let error = Error::Write {
            value: "+cpu".into(),
            path: "/sys/fs/cgroup/cgroup.subtree_control".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert_eq!(error.code(), ErrorCode::CgroupFailed);
        assert!(error.to_string().contains("`+cpu`"), "{error}");
        assert!(error.hint().is_some());
    }

    #[test]
    fn cgroup_of_a_process_is_found() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("4711")).unwrap();
        fs::write(proc.path().join("4711/cgroup"), "0::/qvm/web\n").unwrap();
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(of_process(root, proc.path(), 4711), Some(root.join("qvm/web")));
        assert_eq!(of_process(root, proc.path(), 4712), None);
    }
}
