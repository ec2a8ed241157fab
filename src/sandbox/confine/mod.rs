//! A process that puts itself into a cell before it becomes another program: what it cannot do afterwards, whoever it listens to.
//!
//! Every step is taken by the child between fork and exec, where only bare system calls are allowed; what they need is made
//! before. How each went comes back through a pipe, which exec closes.

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

/// The rights that are known to this program; a kernel that knows fewer holds fewer.
const NEWEST: ABI = ABI::V6;
/// One past the last capability that any kernel has so far, with some to come (capabilities(7): 40 is the last).
const CAPABILITIES: u32 = 64;
/// Beyond every number that a child is given descriptors under, and within the usual limit of 1024.
const BEYOND: RawFd = 512;
/// What the child says of one layer: which it is, and the error, as its two bytes.
const WORD: usize = 3;

/// The cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The user and group that it becomes; `None` stays who it is.
    pub uid: Option<u32>,
    /// A device that it must be able to open: that of its group is the only other group that it keeps, unless that is root's.
    pub device: Option<PathBuf>,
    /// It gets a network namespace with nothing in it.
    pub network: bool,
    /// It loses all capabilities.
    pub capabilities: bool,
    /// No program that it becomes has more rights.
    pub no_new_privileges: bool,
    /// All that it may open by name; `None` is anything.
    pub domain: Option<Domain>,
    /// Calls and requests that nobody there has a use for are refused.
    pub filter: bool,
    /// A step that fails ends it.
    pub strict: bool,
}

/// A Landlock domain. Whoever is in it can neither signal nor trace who is not, nor reach him by an abstract socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// What may be opened by name.
    pub open_to: Vec<(PathBuf, Right)>,
    /// TCP may be used.
    pub tcp: bool,
}

/// What the child needs for it; made by the parent.
#[derive(Debug)]
pub struct Prepared {
    uid: Option<u32>,
    groups: Vec<libc::gid_t>,
    network: bool,
    capabilities: bool,
    no_new_privileges: bool,
    /// `uid_map` and `gid_map` of a user namespace in which everybody is who he was.
    maps: (String, String),
    ruleset: Option<OwnedFd>,
    /// Nothing in it where there is to be none.
    filter: Vec<seccompiler::sock_filter>,
    strict: bool,
    /// It cannot be as strict as is wanted.
    refuses: bool,
    say: OwnedFd,
}

/// How it went, to be read when the child has become the other program, or ended.
#[derive(Debug)]
pub struct Report {
    hear: File,
    missing: Vec<Missing>,
}

impl Cell {
    /// Makes it ready.
    ///
    /// # Errors
    /// No pipe can be made.
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
    /// What is missing. The parent's copy of the child's end must be gone by now.
    pub fn read(mut self) -> Vec<Missing> {
        let mut said = Vec::new();
        // It is a pipe of our own; what cannot be read was not said.
        let _ = self.hear.read_to_end(&mut said);
        for word in said.chunks_exact(WORD) {
            let layer = Layer::ALL.into_iter().find(|layer| *layer as u8 == word[0]);
            let errno = Errno::from_raw_os_error(i32::from(u16::from_ne_bytes([word[1], word[2]])));
            self.missing.extend(layer.map(|layer| Missing { layer, why: why(layer, errno) }));
        }
        self.missing
    }
}

/// The same descriptor with a number that the child has no other use for: what it inherits under a number of its own would replace
/// it, and what is said here would be written there.
fn out_of_the_way(fd: OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, BEYOND)?)
}

/// Widens this process's table of descriptors, for `out_of_the_way`. To be called while there is one thread: with more of them the
/// kernel waits for every CPU as it does that (`synchronize_rcu`, fs/file.c), which takes ten milliseconds and more.
pub fn make_room() {
    // Without it a cell takes longer to make, or says itself that the limit of descriptors is too low.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), BEYOND));
}

/// What an error of a step means.
fn why(layer: Layer, errno: Errno) -> String {
    match (layer, errno) {
        (Layer::Uid, Errno::INVAL) => {
            "this user namespace has no such user (user_namespaces(7))".to_owned()
        }
        (Layer::Network, Errno::PERM | Errno::NOSPC | Errno::ACCESS) => {
            format!("the host lets nobody without rights make namespaces ({})", text(errno))
        }
        (_, errno) => text(errno),
    }
}

fn text(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}

/// A ruleset that opens nothing but this.
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
        .ok_or_else(|| "the kernel has none, or it is not enabled".into())
}

/// The rights on a path; those of directories only where it is one.
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
    /// Goes into the cell. For the child, between fork and exec: nothing here allocates or locks.
    ///
    /// # Errors
    /// A step failed, and all must succeed.
    pub fn enter(&self) -> io::Result<()> {
        if self.refuses {
            return Err(Errno::NOSYS.into());
        }
        let mut alone = !self.network;
        if self.network {
            // With the right to; else below, in a user namespace.
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
        // Landlock wants it as well of whoever has not all rights (landlock(7)).
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

    /// Groups first: afterwards nothing may be changed any more.
    fn become_user(&self, uid: u32) -> rustix::io::Result<()> {
        // SAFETY: system calls that change this (forked, single-threaded) process alone; the list of groups outlives the call.
        // Not libc's functions of these names, which would tell the threads that the parent had.
        unsafe {
            checked(libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()))?;
            checked(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
            checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
        }
    }

    /// A user namespace, which anybody may make where the host allows it, and in it a network namespace.
    fn namespaces(&self) -> rustix::io::Result<()> {
        // Whoever has changed his user is not dumpable, and his /proc/self is root's (proc_pid(5)).
        // SAFETY: a system call without pointers.
        unsafe { checked(libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0))? };
        rustix_unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/gid_map", self.maps.1.as_bytes())?;
        write(c"/proc/self/uid_map", self.maps.0.as_bytes())?;
        // In its own user namespace it has all capabilities.
        drop_bounding_set();
        Ok(())
    }
}

fn rustix_unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: neither flag parts memory or descriptors that other threads share.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// Best effort: without the right to it, `no_new_privs` keeps what is in it out of reach.
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
    // Linux 4.3 has ambient ones.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn restrict(ruleset: RawFd) -> rustix::io::Result<()> {
    // SAFETY: a system call on a descriptor that is open; it restricts this process alone.
    unsafe { checked(libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0)) }
}

/// For this process and whatever it becomes. Wants `no_new_privs`, or CAP_SYS_ADMIN.
fn refuse(filter: &[seccompiler::sock_filter]) -> rustix::io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its instructions, which have the layout of the kernel's, outlive the call, and are only read.
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
    fn of_its_groups_only_that_of_a_device_stays_and_never_root_s() {
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
        // Anybody may open it, and it is root's.
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
