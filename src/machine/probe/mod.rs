//! What this host offers: which QEMU, whether KVM, whether vhost-net.
//!
//! Asking QEMU takes two processes of some 20 ms, so its answers are kept in a file for as long as the binary
//! stays the same. The devices are tried every time: that costs microseconds, and modules come and go.

pub(crate) mod error;
pub mod firmware;

pub use self::error::Error;

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    argv::SANDBOX,
    facts::{Facts, Kvm, Machine, Qemu, Version, machines, newest_q35},
};
use crate::{
    sys::program::{self, Program},
    value::shown,
};

/// How long a QEMU may take to print its version.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The most that is read of the cache.
const MOST: u64 = 1 << 20;
/// How many binaries the cache remembers.
const REMEMBERED: usize = 8;

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// `QVM_QEMU`: a path, or a name to be found on `path`; empty is as good as unset.
    pub qemu: Option<&'a OsStr>,
    /// `PATH`; its relative entries are passed over.
    pub path: Option<&'a OsStr>,
    /// `Layout::facts_cache()`.
    pub cache: &'a Path,
    /// Replaces the cache as a whole, while others may do the same.
    pub write: fn(&Path, &[u8]) -> io::Result<()>,
    /// `/`, below which `dev`, `sys` and `usr/libexec` are; another directory in tests.
    pub root: &'a Path,
    /// [`DEADLINE`].
    pub deadline: Duration,
}

impl Probe<'_> {
    /// All facts.
    ///
    /// # Errors
    /// No QEMU, one that is too old, or one that does not tell its version and its machine types in time.
    pub fn facts(&self) -> Result<Facts, Error> {
        let qemu = self.qemu()?;
        if qemu.version < Version::OLDEST {
            return Err(Error::TooOld { binary: qemu.binary, version: qemu.version });
        }
        Ok(Facts { qemu, kvm: kvm(self.root), vhost_net: vhost_net(self.root) })
    }

    /// The QEMU: from the cache, or by asking it.
    fn qemu(&self) -> Result<Qemu, Error> {
        let binary = self.find()?;
        let identity = Binary::of(&binary)
            .map_err(|source| program::Error::Run { program: binary.clone(), source })?;
        let mut known = read_cache(self.cache);
        if let Some(entry) = known.iter().find(|entry| entry.binary == identity) {
            let Entry { version, machine, sandbox, .. } = entry;
            let (version, machine, sandbox) = (*version, machine.clone(), *sandbox);
            return Ok(Qemu { binary, version, machine, sandbox });
        }
        tracing::debug!(binary = %binary.display(), "asking QEMU for its version and machine types");
        let ask = |arguments: &[&str]| self.ask(&binary, arguments);
        let (version, machine, sandbox) = std::thread::scope(|scope| {
            // Side by side: each takes as long as loading QEMU takes. One that has no filter refuses the option.
            let version = scope.spawn(|| match ask(&["-sandbox", SANDBOX, "-version"]) {
                Ok(said) if Version::read(&said).is_some() => (Ok(said), true),
                Ok(_) | Err(_) => (ask(&["-version"]), false),
            });
            let machines = ask(&["-machine", "help"]);
            let version = version.join();
            let (version, sandbox) = version.unwrap_or_else(|p| std::panic::resume_unwind(p));
            Ok::<_, Error>((
                understood(&binary, "-version", "version", &version?, Version::read)?,
                understood(&binary, "-machine help", "machine type q35", &machines?, newest_q35)?,
                sandbox,
            ))
        })?;
        known.retain(|entry| entry.binary.path != identity.path);
        known.insert(0, Entry { binary: identity, version, machine: machine.clone(), sandbox });
        known.truncate(REMEMBERED);
        let json = serde_json::to_vec(&known).unwrap_or_default();
        if let Err(error) = (self.write)(self.cache, &json) {
            // It is only slower the next time.
            tracing::debug!(cache = %self.cache.display(), %error, "cannot keep what QEMU said");
        }
        Ok(Qemu { binary, version, machine, sandbox })
    }

    /// Every machine type of a QEMU, asked anew: the cache keeps the newest alone.
    ///
    /// # Errors
    /// It does not tell.
    pub fn machines(&self, binary: &Path) -> Result<Vec<Machine>, Error> {
        Ok(machines(&self.ask(binary, &["-machine", "help"])?))
    }

    fn ask(&self, program: &Path, arguments: &[&str]) -> Result<String, Error> {
        let program = Program::new(program).args(arguments).time_limit(self.deadline);
        Ok(program.run()?.success()?)
    }

    fn find(&self) -> Result<PathBuf, Error> {
        let named = self.qemu.filter(|named| !named.is_empty());
        if let Some(named) = named.map(Path::new).filter(|named| named.components().count() > 1) {
            // Absolute for good: the supervisor that uses it has another working directory.
            let absolute =
                if named.is_absolute() { Ok(named.into()) } else { named.canonicalize() };
            return absolute
                .ok()
                .filter(|path: &PathBuf| is_program(path))
                .ok_or_else(|| Error::NotAProgram(named.to_owned()));
        }
        let name = named.unwrap_or(OsStr::new("qemu-system-x86_64"));
        // Red Hat's only name for it.
        let libexec = || named.is_none().then(|| self.root.join("usr/libexec/qemu-kvm"));
        on_path(name, self.path)
            .or_else(|| libexec().filter(|path| is_program(path)))
            .ok_or_else(|| Error::NotFound(shown(&name.to_string_lossy())))
    }
}

/// The program of this name in the absolute directories of `PATH`.
pub fn on_path(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    let directories = path.map(std::env::split_paths).into_iter().flatten();
    directories
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

/// What is looked for in QEMU's words, or an error that quotes them.
fn understood<T>(
    binary: &Path,
    arguments: &str,
    missing: &'static str,
    said: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    read(said).ok_or_else(|| Error::Strange {
        command: format!("{} {arguments}", binary.display()),
        missing,
        said: shown(said.trim()),
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether KVM can be used; `root` is `/`.
pub fn kvm(root: &Path) -> Kvm {
    match open_device(&root.join("dev/kvm")) {
        Ok(()) => {
            let modules = root.join("sys/module");
            if ["kvm_intel", "kvm_amd"].iter().any(|name| modules.join(name).is_dir()) {
                Kvm::Usable
            } else {
                Kvm::Unproven
            }
        }
        Err(error) => unusable(&error),
    }
}

/// What an error on opening /dev/kvm says.
fn unusable(error: &io::Error) -> Kvm {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        // The node may be there without the module behind it.
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::NOTDIR) => Kvm::Missing,
        _ => Kvm::Denied,
    }
}

/// Whether /dev/vhost-net can be opened; `root` is `/`.
pub fn vhost_net(root: &Path) -> bool {
    open_device(&root.join("dev/vhost-net")).is_ok()
}

fn open_device(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

/// One binary that was asked.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    binary: Binary,
    version: Version,
    machine: String,
    sandbox: bool,
}

/// What changes when a binary does. On NixOS it is the path alone: there all files are of 1970.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Binary {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Binary {
    fn of(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let stat = path.metadata()?;
        Ok(Self {
            path,
            device: stat.dev(),
            inode: stat.ino(),
            bytes: stat.size(),
            modified: (stat.mtime(), stat.mtime_nsec()),
        })
    }
}

/// The entries; a file that is absent, too large or not what it should be has none.
fn read_cache(path: &Path) -> Vec<Entry> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST).read_to_end(&mut bytes))
        .ok()
        .and_then(|_| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_on_dev_kvm_is_absence_or_denial() {
        for (errno, expected) in [
            (rustix::io::Errno::NOENT, Kvm::Missing),
            (rustix::io::Errno::NODEV, Kvm::Missing),
            (rustix::io::Errno::NXIO, Kvm::Missing),
            (rustix::io::Errno::ACCESS, Kvm::Denied),
            (rustix::io::Errno::PERM, Kvm::Denied),
        ] {
            assert_eq!(unusable(&errno.into()), expected, "{errno}");
        }
    }
}
