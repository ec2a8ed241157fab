//! The sandbox of a child process: the child restricts itself before it executes QEMU.
//!
//! Every step runs in the child between fork and exec, where only system calls are allowed; the
//! parent prepares all data. A pipe, which exec closes, reports the result of each step.

pub(crate) mod filter;

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use nix::libc;
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, clear_ambient_capability_set,
        set_capabilities, set_no_new_privs,
    },
};

use crate::{
    control::isolation::{Layer, Missing},
    sandbox::file_access::Right,
};

/// The newest Landlock ABI that this program supports; older kernels restrict fewer rights.
const NEWEST: ABI = ABI::V6;
/// An upper bound for capability numbers, with room for future ones (capabilities(7): 40 is the
/// last).
const CAPABILITIES: u32 = 64;
/// A descriptor number above all numbers that a child gets, and below the usual limit of 1024.
const BEYOND: RawFd = 512;
/// The size of a report about one layer: its number and the error, in bytes.
const WORD: usize = 3;

/// A sandbox configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The UID and GID of the process; `None` keeps those of the parent.
    pub uid: Option<u32>,
    /// A device that the process must be able to open: the device's group is kept as the only
    /// supplementary group, unless it is root.
    pub device: Option<PathBuf>,
    /// The process gets an empty network namespace.
    pub network: bool,
    /// The process drops all capabilities.
    pub capabilities: bool,
    /// exec grants no privileges (`no_new_privs`).
    pub no_new_privileges: bool,
    /// The Landlock domain; `None` means no restriction.
    pub domain: Option<Domain>,
    /// The seccomp filter is installed.
    pub filter: bool,
    /// A failed step ends the process.
    pub strict: bool,
}

/// A Landlock domain. Its processes can neither signal nor trace processes outside it, nor connect
/// to their abstract sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// The paths that may be opened.
    pub open_to: Vec<(PathBuf, Right)>,
    /// TCP is allowed.
    pub tcp: bool,
}

/// The data for the child, prepared by the parent.
#[derive(Debug)]
pub struct Prepared {
    uid: Option<u32>,
    groups: Vec<libc::gid_t>,
    network: bool,
    capabilities: bool,
    no_new_privileges: bool,
    /// `uid_map` and `gid_map` of a user namespace with an identity mapping.
    maps: (String, String),
    ruleset: Option<OwnedFd>,
    /// The filter; empty for none.
    filter: Vec<seccompiler::sock_filter>,
    strict: bool,
    /// A required layer is not available.
    refuses: bool,
    say: OwnedFd,
}

/// The result of the layers, to be read after the child has executed its program or exited.
#[derive(Debug)]
pub struct Report {
    hear: File,
    missing: Vec<Missing>,
}

impl Cell {
    /// Prepares the data for a child.
    ///
    /// # Errors
    /// No pipe can be created.
    pub fn prepare(&self) -> io::Result<(Prepared, Report)> {
        let (hear, say) = pipe_with(PipeFlags::CLOEXEC)?;
        let say = out_of_the_way(say)?;
        let mut missing = vec![];
        let ruleset = match self.domain.as_ref().map(ruleset).transpose() {
            Ok(ruleset) => ruleset.map(out_of_the_way).transpose()?,
            Err(why) => {
                missing.push(Missing { layer: Layer::Landlock, why });
                None
            }
        };
        let filter = match self.filter.then(super::confine::filter::program).transpose() {
            Ok(filter) => filter.unwrap_or_default(),
            Err(why) => {
                missing.push(Missing { layer: Layer::Seccomp, why: why.to_string() });
                vec![]
            }
        };
        let device = self.device.as_ref().and_then(|path| std::fs::metadata(path).ok());
        let group = device.filter(|d| d.mode() & 0o060 == 0o060 && d.gid() != 0);
        let uid = self.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let gid = self.uid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        let prepared = Prepared {
            uid: self.uid,
            groups: group.map(|device| device.gid()).into_iter().collect(),
            network: self.network,
            capabilities: self.capabilities,
            no_new_privileges: self.no_new_privileges,
            maps: (format!("{uid} {uid} 1\n"), format!("{gid} {gid} 1\n")),
            refuses: self.strict && !missing.is_empty(),
            ruleset,
            filter,
            strict: self.strict,
            say,
        };
        Ok((prepared, Report { hear: File::from(hear), missing }))
    }
}

impl Report {
    /// Returns the missing layers. The parent's copy of the child's end must be closed.
    pub fn read(mut self) -> Vec<Missing> {
        let mut output = Vec::new();
        // Read errors mean that nothing was reported.
        let _ = self.hear.read_to_end(&mut output);
        for word in output.chunks_exact(WORD) {
            let layer = Layer::ALL.into_iter().find(|layer| *layer as u8 == word[0]);
            let errno = Errno::from_raw_os_error(i32::from(u16::from_ne_bytes([word[1], word[2]])));
            self.missing.extend(layer.map(|layer| Missing { layer, why: why(layer, errno) }));
        }
        self.missing
    }
}

/// Moves a descriptor to a number that no inherited descriptor uses: otherwise that one would
/// replace it, and reports would be written to it.
fn out_of_the_way(fd: OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, BEYOND)?)
}

/// Enlarges this process's descriptor table for `out_of_the_way`. Call this while there is only one
/// thread: otherwise the kernel waits for all CPUs (`synchronize_rcu`, fs/file.c), which takes ten
/// milliseconds and more.
pub fn make_room() {
    // On failure the preparation takes longer, or reports the descriptor limit itself.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), BEYOND));
}

/// Describes the error of a step.
fn why(layer: Layer, errno: Errno) -> String {
    match (layer, errno) {
        (Layer::Uid, Errno::INVAL) => {
            "the UID does not exist in this user namespace (user_namespaces(7))".to_owned()
        }
        (Layer::Network, Errno::PERM | Errno::NOSPC | Errno::ACCESS) => {
            format!("the host does not allow unprivileged user namespaces ({})", text(errno))
        }
        (_, errno) => text(errno),
    }
}

fn text(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

/// Creates the Landlock ruleset of a domain.
fn ruleset(domain: &Domain) -> Result<OwnedFd, String> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.scope(Scope::AbstractUnixSocket | Scope::Signal));
    if !domain.tcp {
        rules = rules.and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)));
    }
    let mut created = rules.and_then(Ruleset::create).map_err(|error| error.to_string())?;
    for (path, right) in &domain.open_to {
        let Ok(fd) = PathFd::new(path) else { continue };
        let rights = rights(*right, path);
        let rule = PathBeneath::new(fd, rights);
        created = created.add_rule(rule).map_err(|error| error.to_string())?;
    }
    Option::<OwnedFd>::from(created)
        .ok_or_else(|| "the kernel lacks Landlock, or Landlock is disabled".into())
}

/// Returns the access rights for a path; rights of directories only for directories.
fn rights(right: Right, path: &Path) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rights = match right {
        Right::Read => read,
        Right::Execute => read | AccessFs::Execute,
        Right::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
    };
    if path.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) }
}

impl Prepared {
    /// Applies the sandbox. For the child between fork and exec: does not allocate or lock.
    ///
    /// # Errors
    /// A required step failed.
    pub fn enter(&self) -> io::Result<()> {
        if self.refuses {
            return Err(Errno::NOSYS.into());
        }
        let mut alone = !self.network;
        if self.network {
            // If privileged; otherwise below, in a user namespace.
            alone = rustix_unshare(UnshareFlags::NEWNET).is_ok();
        }
        if self.capabilities {
            drop_bounding_set();
        }
        if let Some(uid) = self.uid {
            self.tell(Layer::Uid, self.become_user(uid))?;
        }
        if !alone {
            self.tell(Layer::Network, self.namespaces())?;
        }
        if self.capabilities {
            self.tell(Layer::Capabilities, drop_capabilities())?;
        }
        // Landlock also requires it without CAP_SYS_ADMIN (landlock(7)).
        if self.no_new_privileges {
            self.tell(Layer::NoNewPrivileges, set_no_new_privs(true))?;
        }
        if let Some(ruleset) = &self.ruleset {
            self.tell(Layer::Landlock, restrict(ruleset.as_raw_fd()))?;
        }
        if !self.filter.is_empty() {
            self.tell(Layer::Seccomp, refuse(&self.filter))?;
        }
        Ok(())
    }

    fn tell(&self, layer: Layer, done: rustix::io::Result<()>) -> io::Result<()> {
        let Err(errno) = done else { return Ok(()) };
        let [low, high] = (errno.raw_os_error() as u16).to_ne_bytes();
        let _ = rustix::io::write(&self.say, &[layer as u8, low, high]);
        if self.strict { Err(errno.into()) } else { Ok(()) }
    }

    /// Groups first: after the UID change they cannot be changed.
    fn become_user(&self, uid: u32) -> rustix::io::Result<()> {
        // SAFETY: system calls that change only this forked single-threaded process; the list of
        // groups outlives the call. The libc functions of these names are not used: they would
        // signal threads, which exist only in the parent.
        unsafe {
            checked(libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()))?;
            checked(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
            checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
        }
    }

    /// Creates a user namespace, which requires no privilege if the host allows it, and in it a
    /// network namespace.
    fn namespaces(&self) -> rustix::io::Result<()> {
        // After a UID change the process is not dumpable, and root owns its /proc/self
        // (proc_pid(5)).
        // SAFETY: a system call without pointers.
        unsafe { checked(libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0))? };
        rustix_unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/gid_map", self.maps.1.as_bytes())?;
        write(c"/proc/self/uid_map", self.maps.0.as_bytes())?;
        // In its user namespace the process has all capabilities.
        drop_bounding_set();
        Ok(())
    }
}

fn rustix_unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the flags affect neither memory nor descriptors shared with other threads.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// Best effort: without privilege, `no_new_privs` has the same effect.
fn drop_bounding_set() {
    for capability in 0..CAPABILITIES {
        let drop = libc::PR_CAPBSET_DROP;
        // SAFETY: a system call without pointers.
        if unsafe { libc::syscall(libc::SYS_prctl, drop, capability, 0, 0, 0) } != 0 {
            // EINVAL: the kernel has no further capabilities. EPERM: it would refuse each of them.
            return;
        }
    }
}

fn drop_capabilities() -> rustix::io::Result<()> {
    // Ambient capabilities exist since Linux 4.3.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn restrict(ruleset: RawFd) -> rustix::io::Result<()> {
    // SAFETY: a system call on an open descriptor; it restricts only this process.
    unsafe { checked(libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0)) }
}

/// Installs the filter for this process and its programs. Requires `no_new_privs` or CAP_SYS_ADMIN.
fn refuse(filter: &[seccompiler::sock_filter]) -> rustix::io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its instructions have the kernel's layout, outlive the call, and are
    // only read.
    unsafe { checked(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program)) }
}

fn checked(returned: libc::c_long) -> rustix::io::Result<()> {
    if returned >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn only_a_device_group_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        std::fs::write(&device, "").unwrap();
        let groups = |device: Option<&Path>| {
            let cell = Cell {
                uid: Some(1_900_000_000),
                device: device.map(Path::to_owned),
                network: false,
                capabilities: false,
                no_new_privileges: false,
                domain: None,
                filter: false,
                strict: true,
            };
            cell.prepare().unwrap().0.groups
        };
        // World-accessible and owned by root.
        assert_eq!(groups(Some(Path::new("/dev/null"))), [0; 0]);
        assert_eq!(groups(None), [0; 0]);
        let own = rustix::process::getegid().as_raw();
        let gid = if own == 0 { 36 } else { own };
        chown(&device, None, Some(gid)).unwrap();
        for (mode, kept) in [(0o660, vec![gid]), (0o666, vec![gid]), (0o600, vec![])] {
            std::fs::set_permissions(&device, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(groups(Some(&device)), kept, "{mode:o}");
        }
    }
}
