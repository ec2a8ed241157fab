//! The attempts of an attacker who has escaped from a guest into QEMU: each has a name, and either
//! succeeds or reports the kernel's error.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    net::{TcpStream, UdpSocket},
    os::{
        fd::{FromRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::libc;
use serde::{Deserialize, Serialize};

/// The variable with the targets.
pub(crate) const TARGETS: &str = "QVM_ESCAPE_TARGETS";
/// The output of the set-user-ID program if it runs as root.
pub(crate) const WHO: &str = "--who-am-i";

/// The targets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// The disk of a neighbor.
    pub(crate) disk: PathBuf,
    /// The VM's own state directory.
    pub(crate) state: PathBuf,
    /// Its VM file.
    pub(crate) vm_file: PathBuf,
    /// The QEMU of a neighbor.
    pub(crate) neighbour: i32,
    /// The supervisor of the neighbor.
    pub(crate) supervisor: i32,
    /// The control socket of the neighbor, and the monitor of its QEMU.
    pub(crate) control: PathBuf,
    pub(crate) monitor: PathBuf,
    /// Listeners at an abstract socket name, at TCP and at UDP.
    pub(crate) abstract_name: String,
    pub(crate) port: u16,
    /// A set-user-ID program of root.
    pub(crate) suid: PathBuf,
    /// A directory that is writable for all users.
    pub(crate) open_dir: PathBuf,
    /// Whether taps can be created here, and the data to write into one.
    pub(crate) report: Option<i32>,
}

type Attempt = (&'static str, fn(&Targets) -> io::Result<()>);

/// All attempts.
pub(crate) const ALL: [Attempt; 34] = [
    ("read a neighbour's disk", |t| File::open(&t.disk).map(drop)),
    ("write a neighbour's disk", |t| File::options().write(true).open(&t.disk).map(drop)),
    ("list the VMs", |t| fs::read_dir(t.state.parent().unwrap()).map(drop)),
    ("list its own state", |t| fs::read_dir(&t.state).map(drop)),
    ("read its own identity", |t| File::open(t.state.join("identity.toml")).map(drop)),
    ("read its own VM file", |t| File::open(&t.vm_file).map(drop)),
    ("read /etc/shadow", |_| File::open("/etc/shadow").map(drop)),
    ("read /etc/passwd", |_| File::open("/etc/passwd").map(drop)),
    ("list /etc", |_| fs::read_dir("/etc").map(drop)),
    ("make a file where everybody may", |t| {
        let path = t.open_dir.join(format!("escaped-{}", std::process::id()));
        File::create_new(&path).and_then(|_| fs::remove_file(&path))
    }),
    ("read the supervisor's environment", |t| {
        fs::read(format!("/proc/{}/environ", t.supervisor)).map(drop)
    }),
    ("open the neighbour's memory", |t| File::open(format!("/proc/{}/mem", t.neighbour)).map(drop)),
    ("read the neighbour's memory", read_memory),
    ("trace the neighbour", trace),
    ("signal the neighbour", |t| signal(t.neighbour)),
    ("signal the supervisor", |t| signal(t.supervisor)),
    ("take a descriptor of the neighbour's", take_descriptor),
    ("connect to the neighbour's control socket", |t| connect(&t.control)),
    ("connect to the neighbour's monitor", |t| connect(&t.monitor)),
    ("connect to an abstract socket", |t| {
        let address = SocketAddr::from_abstract_name(&t.abstract_name)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    ("connect by TCP", |t| TcpStream::connect(("127.0.0.1", t.port)).map(drop)),
    ("listen by TCP", |_| {
        std::net::TcpListener::bind("0.0.0.0:0").and_then(|on| {
            // A network namespace without interfaces has no listeners.
            TcpStream::connect(("127.0.0.1", on.local_addr()?.port())).map(drop)
        })
    }),
    ("send by UDP", |t| {
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"out", ("127.0.0.1", t.port)).map(drop)
    }),
    ("open a packet socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW)),
    ("make a tap", |_| File::options().read(true).write(true).open("/dev/net/tun").and_then(tap)),
    ("become root", |_| {
        // SAFETY: a system call without pointers.
        let done = checked(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) });
        done.and_then(|()| capable())
    }),
    ("become root by a set-user-ID program", become_root_by),
    ("change the root directory", |_| {
        // SAFETY: the path is a constant that ends with a NUL.
        checked(unsafe { libc::syscall(libc::SYS_chroot, c"/".as_ptr()) })
    }),
    ("make a device", |t| {
        let path = t.open_dir.join(format!("device-{}", std::process::id()));
        let name = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path ends with a NUL and outlives the call.
        let made =
            unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 1)) };
        checked(made.into()).and_then(|()| fs::remove_file(&path))
    }),
    ("change a tap", |_| change_a_tap()),
    ("keep a key", |_| {
        let (kind, name, key) = (c"user".as_ptr(), c"escape".as_ptr(), c"key".as_ptr());
        // SAFETY: the strings end with a NUL, and the length of the key is correct. The key is
        // removed with this process (keyrings(7)).
        checked(unsafe { libc::syscall(libc::SYS_add_key, kind, name, key, 3, -2) })
    }),
    ("handle its own page faults", |_| {
        // SAFETY: a system call without pointers; the descriptor is closed with the process.
        checked(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })
    }),
    ("load a program into the kernel", |_| {
        // An array of one element, by the first five fields of `union bpf_attr`: type, key size,
        // value size, entries, flags.
        let map: [u32; 5] = [2, 4, 4, 1, 0];
        // SAFETY: the structure has the given length and outlives the call.
        checked(unsafe { libc::syscall(libc::SYS_bpf, 0, map.as_ptr(), size_of_val(&map)) })
    }),
    ("make a user namespace", |_| {
        // In a child process, because this process must stay in its namespace. SAFETY: between fork
        // and exit the child makes one bare system call.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: as above.
                let made = unsafe { libc::unshare(libc::CLONE_NEWUSER) };
                // SAFETY: the child exits immediately.
                unsafe { libc::_exit(i32::from(made != 0)) }
            }
            pid => {
                let mut status = 0;
                // SAFETY: the status outlives the call.
                checked(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
                if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
            }
        }
    }),
];

/// The requests that a tap accepts without privileges. Any answer of the device counts as success.
fn change_a_tap() -> io::Result<()> {
    for request in [libc::SIOCSIFHWADDR, libc::TUNSETPERSIST, libc::TUNSETOWNER, libc::TUNSETLINK] {
        // SAFETY: standard input is /dev/null, which has no requests and is not read.
        let done = checked(unsafe { libc::ioctl(0, request as _, 0) }.into());
        match done {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(_) | Ok(()) => return Ok(()),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EPERM))
}

/// Operations that require a privilege of root.
fn capable() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match effective.map(str::trim) {
        Some(none) if none.bytes().all(|byte| byte == b'0') => Err(libc::EPERM),
        // Even reading fails: root without capabilities.
        None => Err(libc::EACCES),
        Some(_) => Ok(()),
    }
    .map_err(io::Error::from_raw_os_error)
}

fn checked(returned: libc::c_long) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: a system call without pointers; the descriptor is closed with the process.
    checked(unsafe { libc::socket(family, kind, 0) }.into())
}

/// A listener with a full backlog was reached.
fn connect(path: &Path) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK);
    let socket = socket_with(kind.0, kind.1, kind.2, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(rustix::io::Errno::AGAIN) => Ok(()),
        done => Ok(done?),
    }
}

fn tap(tun: File) -> io::Result<()> {
    let mut request = [0_u8; 40];
    request[..8].copy_from_slice(b"escape%d");
    request[16..18].copy_from_slice(&((libc::IFF_TAP | libc::IFF_NO_PI) as u16).to_ne_bytes());
    let fd = std::os::fd::AsRawFd::as_raw_fd(&tun);
    // SAFETY: the structure has the size of an ifreq and outlives the call.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETIFF, request.as_mut_ptr()) }.into())
}

fn signal(pid: i32) -> io::Result<()> {
    // SAFETY: a system call without pointers. SIGCONT does not affect a running process.
    checked(unsafe { libc::kill(pid, libc::SIGCONT) }.into())
}

fn trace(t: &Targets) -> io::Result<()> {
    // SAFETY: this process's memory is not changed; the tracee is detached.
    checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, t.neighbour, 0, 0) })
}

fn read_memory(t: &Targets) -> io::Result<()> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", t.neighbour)).unwrap_or_default();
    let start = maps.split('-').next().and_then(|hex| usize::from_str_radix(hex, 16).ok());
    let mut bytes = [0_u8; 16];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: start.unwrap_or(0x1000) as *mut _, iov_len: bytes.len() };
    // SAFETY: the local buffer has the given length and outlives the call.
    let read = unsafe { libc::process_vm_readv(t.neighbour, &local, 1, &remote, 1, 0) };
    checked(read as libc::c_long)
}

fn take_descriptor(t: &Targets) -> io::Result<()> {
    // SAFETY: system calls without pointers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, t.neighbour, 0) };
    checked(pidfd)?;
    // SAFETY: as above.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, 3, 0) };
    checked(taken)?;
    // SAFETY: the descriptor is new and has no other owner.
    drop(unsafe { OwnedFd::from_raw_fd(taken as i32) });
    Ok(())
}

fn become_root_by(t: &Targets) -> io::Result<()> {
    let said = std::process::Command::new(&t.suid).arg(WHO).output()?.stdout;
    match String::from_utf8_lossy(&said).trim() {
        "0" => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

/// Makes all attempts, and prints a line for each: the name, a colon, and `succeeded` or the error.
pub(crate) fn all(targets: &Targets) -> String {
    let line = |(name, attempt): &Attempt| match attempt(targets) {
        Ok(()) => format!("escape: {name}: succeeded\n"),
        Err(error) => format!("escape: {name}: {error}\n"),
    };
    ALL.iter().map(line).collect()
}

/// Returns the successful attempts in the output.
pub(crate) fn succeeded(said: &str) -> Vec<&str> {
    let tried: Vec<&str> =
        said.lines().filter_map(|line| Some(line.split_once("escape: ")?.1)).collect();
    assert_eq!(tried.len(), ALL.len(), "not everything was tried:\n{said}");
    tried.iter().filter_map(|line| line.strip_suffix(": succeeded")).collect()
}

/// Whether the set-user-ID bit of the program at `path` is effective: not on a file system mounted
/// with nosuid.
pub(crate) fn is_suid(path: &Path) -> bool {
    std::process::Command::new(path)
        .arg(WHO)
        .output()
        .is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
