//! Listening Unix sockets.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, fchmod},
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen as begin,
        socket_with,
    },
};

use crate::value::{ErrorCode, Explain, is_host_fault};

/// The maximum path length in bytes: `sun_path` has 108 bytes with its NUL (unix(7)).
const MAX_PATH: usize = 107;
/// Owner and group may connect, which requires write permission.
const GROUP: u32 = 0o660;
/// The owner alone.
const OWNER: u32 = 0o600;
/// The maximum number of connections waiting to be accepted; more are refused with EAGAIN.
const BACKLOG: i32 = 64;

/// Why a socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path exceeds the limit of Unix sockets.
    #[error("`{}` has {} bytes; the path of a socket has at most \
        {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// A file of another type exists at the path.
    #[error("cannot listen on `{}`: a file that is not a socket exists there", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens on the socket.
    #[error("cannot listen on `{}`: another process already does", .0.display())]
    Served(PathBuf),
    /// The socket cannot be created.
    #[error("cannot listen on `{}`", path.display())]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::TooLong(..) => ErrorCode::SocketPathTooLong,
            Self::NotASocket(..) => ErrorCode::SocketPathTaken,
            Self::Served(..) => ErrorCode::SocketInUse,
            Self::Io { source, .. } => ErrorCode::of_io(source),
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::TooLong(_) => Some("use a shorter `--runtime-dir`".into()),
            Self::NotASocket(path) => Some(format!("remove `{}`", path.display())),
            Self::Served(path) => Some(format!(
                "list the process with `ss -lxp src {}`, or choose another \
                    path",
                path.display()
            )),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run qvm as root, or choose another directory with `--runtime-dir`".into())
            }
            Self::Io { .. } => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}

/// Listens at `path` with mode 0660, independent of the umask. The socket of an earlier process is
/// replaced.
///
/// # Errors
/// The path is too long, or a file of another type exists, or the kernel refuses.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    at(path, GROUP)
}

/// Like [`listen`], with mode 0600: clients of QEMU's monitor have full control over QEMU.
///
/// # Errors
/// As for [`listen`].
pub fn listen_private(path: &Path) -> Result<UnixListener, Error> {
    at(path, OWNER)
}

/// Like [`listen`], but does not replace the socket of a running process.
///
/// # Errors
/// As for [`listen`], or another process listens there.
pub fn listen_unless_served(path: &Path) -> Result<UnixListener, Error> {
    let wrap = |source| Error::Io { path: path.to_owned(), source };
    if is_served(path).map_err(wrap)? {
        return Err(Error::Served(path.to_owned()));
    }
    at(path, OWNER)
}

/// Returns true if a process listens at `path`, even a hung one.
///
/// # Errors
/// Cannot determine it: this user may not connect, or has no free descriptor.
pub fn is_served(path: &Path) -> io::Result<bool> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Ok(false);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        // EAGAIN: the queue of waiting connections is full (connect(2)).
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        // PROTOTYPE: a socket of another type, such as that of systemd-journald.
        Err(Errno::CONNREFUSED | Errno::NOENT | Errno::NOTDIR | Errno::PROTOTYPE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn at(path: &Path, mode: u32) -> Result<UnixListener, Error> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Err(Error::TooLong(path.to_owned()));
    }
    let wrap = |source| Error::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(wrap)?,
        Ok(_) => return Err(Error::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrap(error)),
    }
    bound(path, mode).map_err(wrap)
}

fn bound(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // bind(2) creates the file with the mode of the socket minus the umask, so never with more than
    // this …
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // … and this sets the exact mode before any connection is accepted.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    begin(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        let _listener = listen_private(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn served_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network");
        let first = listen_unless_served(&path).unwrap();
        let refused = || match listen_unless_served(&path).unwrap_err() {
            Error::Served(path) => path,
            other => panic!("{other}"),
        };
        assert_eq!(refused(), path);
        // The pending connection fills the queue: the socket is served even if no further one can
        // wait.
        begin(&first, 0).unwrap();
        assert_eq!(refused(), path);
        drop(first);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        listen_unless_served(&path).unwrap();
    }

    #[test]
    fn too_long_path_is_an_error() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = listen(&path).unwrap_err();
        assert!(matches!(error, Error::TooLong(_)), "{error}");
        assert!(error.hint().unwrap().contains("--runtime-dir"));
    }
}
