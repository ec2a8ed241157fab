//! Probes the host: QEMU, KVM and vhost-net.
//!
//! Probing QEMU starts two processes of about 20 ms, so the results are cached while the binary is
//! unchanged. Devices are probed every time: this takes microseconds, and modules can be loaded or
//! unloaded.

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

/// The time limit for QEMU to print its version. While a host boots, all VMs start at once.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The maximum size of the cache file, in bytes.
const MOST: u64 = 1 << 20;
/// The maximum number of binaries in the cache.
const REMEMBERED: usize = 8;

/// The inputs of a probe.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// `QVM_QEMU`: a path, or a name to find in `path`; empty means unset.
    pub qemu: Option<&'a OsStr>,
    /// `PATH`; relative entries are ignored.
    pub path: Option<&'a OsStr>,
    /// `Layout::facts_cache()`.
    pub cache: &'a Path,
    /// Replaces the cache atomically, also with concurrent writers.
    pub write: fn(&Path, &[u8]) -> io::Result<()>,
    /// `/`, which contains `dev`, `sys` and `usr/libexec`; another directory in tests.
    pub root: &'a Path,
    /// [`DEADLINE`].
    pub deadline: Duration,
}

impl Probe<'_> {
    /// Returns all facts.
    ///
    /// # Errors
    /// QEMU is not installed, too old, or does not print its version and machine types in time.
    pub fn facts(&self) -> Result<Facts, Error> {
        let qemu = self.qemu()?;
        if qemu.version < Version::OLDEST {
            return Err(Error::TooOld { binary: qemu.binary, version: qemu.version });
        }
        Ok(Facts { qemu, kvm: kvm(self.root), vhost_net: vhost_net(self.root) })
    }

    /// Returns the QEMU, from the cache or by running it.
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
        tracing::debug!(binary = %binary.display(), "asking QEMU for its version and machine \
            types");
        let ask = |arguments: &[&str]| self.ask(&binary, arguments);
        let (version, machine, sandbox) = std::thread::scope(|scope| {
            // In parallel: each run takes as long as loading QEMU. A QEMU without filter refuses
            // the option.
            let version = scope.spawn(|| match ask(&["-sandbox", SANDBOX, "-version"]) {
                Ok(output) if Version::parse(&output).is_some() => (Ok(output), true),
                Ok(_) | Err(_) => (ask(&["-version"]), false),
            });
            let machines = ask(&["-machine", "help"]);
            let version = version.join();
            let (version, sandbox) = version.unwrap_or_else(|p| std::panic::resume_unwind(p));
            Ok::<_, Error>((
                understood(&binary, "-version", "version", &version?, Version::parse)?,
                understood(&binary, "-machine help", "machine type q35", &machines?, newest_q35)?,
                sandbox,
            ))
        })?;
        known.retain(|entry| entry.binary.path != identity.path);
        known.insert(0, Entry { binary: identity, version, machine: machine.clone(), sandbox });
        known.truncate(REMEMBERED);
        let json = serde_json::to_vec(&known).unwrap_or_default();
        if let Err(error) = (self.write)(self.cache, &json) {
            // Without a cache, only the next probe is slower.
            tracing::debug!(cache = %self.cache.display(), %error, "cannot write the QEMU cache");
        }
        Ok(Qemu { binary, version, machine, sandbox })
    }

    /// Returns all machine types of a QEMU, without the cache, which only has the newest.
    ///
    /// # Errors
    /// QEMU does not print them.
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
            // Absolute, since the supervisor has another working directory.
            let absolute =
                if named.is_absolute() { Ok(named.into()) } else { named.canonicalize() };
            return absolute
                .ok()
                .filter(|path: &PathBuf| is_program(path))
                .ok_or_else(|| Error::NotAProgram(named.to_owned()));
        }
        let name = named.unwrap_or(OsStr::new("qemu-system-x86_64"));
        // The only name in packages of Red Hat.
        let libexec = || named.is_none().then(|| self.root.join("usr/libexec/qemu-kvm"));
        on_path(name, self.path)
            .or_else(|| libexec().filter(|path| is_program(path)))
            .ok_or_else(|| Error::NotFound(shown(&name.to_string_lossy())))
    }
}

/// Returns the program of this name in the absolute directories of `PATH`.
pub fn on_path(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    let directories = path.map(std::env::split_paths).into_iter().flatten();
    directories
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

/// Parses the output of QEMU; the error quotes it.
fn understood<T>(
    binary: &Path,
    arguments: &str,
    missing: &'static str,
    output: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    read(output).ok_or_else(|| Error::Strange {
        command: format!("{} {arguments}", binary.display()),
        missing,
        output: shown(output.trim()),
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Probes KVM; `root` is `/`.
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

/// Returns the meaning of an error on opening /dev/kvm.
fn unusable(error: &io::Error) -> Kvm {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        // The device node can exist without its module.
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::NOTDIR) => Kvm::Missing,
        _ => Kvm::Denied,
    }
}

/// Returns true if /dev/vhost-net can be opened; `root` is `/`.
pub fn vhost_net(root: &Path) -> bool {
    open_device(&root.join("dev/vhost-net")).is_ok()
}

fn open_device(path: &Path) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

/// A probed binary.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    binary: Binary,
    version: Version,
    machine: String,
    sandbox: bool,
}

/// The properties that change with a binary. On NixOS only the path changes: all files are of 1970.
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

/// Reads the entries; none if the file is missing, too large or invalid.
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
    fn dev_kvm_errors_are_classified() {
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
