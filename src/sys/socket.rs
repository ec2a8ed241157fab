//! Listening sockets at paths.

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

use crate::value::{Explain, is_host_fault};

/// The longest path of a socket: `sun_path` has 108 bytes with its NUL (unix(7)).
const MAX_PATH: usize = 107;
/// Owner and group may connect, which needs the right to write.
const GROUP: u32 = 0o660;
/// The owner alone.
const OWNER: u32 = 0o600;
/// Connections that may wait to be accepted; more is refused with EAGAIN.
const BACKLOG: i32 = 64;

/// Why nothing listens there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is too long for any socket.
    #[error("`{}` has {} bytes, and a socket's path has at most {MAX_PATH}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// There is a file of another kind, which is not ours to remove.
    #[error("cannot listen on `{}`: there is a file that is no socket", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens there.
    #[error("cannot listen on `{}`: somebody does already", .0.display())]
    Served(PathBuf),
    /// It cannot be made.
    #[error("cannot listen on `{}`", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::TooLong(_) => Some("use a shorter `--runtime-dir`".into()),
            Self::NotASocket(path) => Some(format!("remove `{}`", path.display())),
            Self::Served(path) => {
                Some(format!("`ss -lxp src {}` shows who; or choose another", path.display()))
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as root, or with a `--runtime-dir` of your own".into())
            }
            Self::Io { .. } => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        is_host_fault(self)
    }
}

/// Listens at `path` with mode 0660 whatever the umask is; a socket that an earlier process left there is replaced.
///
/// # Errors
/// The path is too long, or taken by another kind of file, or the kernel refuses.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    at(path, GROUP)
}

/// The same with mode 0600: whoever speaks to QEMU's monitor can do anything with it.
///
/// # Errors
/// As of [`listen`].
pub fn listen_alone(path: &Path) -> Result<UnixListener, Error> {
    at(path, OWNER)
}

/// The same, but for a socket that another process listens at: that one stays.
///
/// # Errors
/// As of [`listen`], or somebody listens there.
pub fn listen_first(path: &Path) -> Result<UnixListener, Error> {
    let wrap = |source| Error::Io { path: path.to_owned(), source };
    if is_served(path).map_err(wrap)? {
        return Err(Error::Served(path.to_owned()));
    }
    at(path, OWNER)
}

/// Whether a process listens there; a process that hangs does so, too.
///
/// # Errors
/// It is not known: this user may not connect, or has no descriptors left.
pub fn is_served(path: &Path) -> io::Result<bool> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Ok(false);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        // EAGAIN: so many wait that one more cannot (connect(2)).
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        // PROTOTYPE: a socket of another kind, such as systemd-journald's.
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
    // bind(2) makes the file with the socket's own mode less the umask, so it is never wider than this …
    fchmod(&socket, Mode::from_raw_mode(mode))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // … and this undoes the umask, before anybody can connect.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    begin(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        let _listener = listen_alone(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_socket_that_somebody_listens_at_is_left_to_him() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network");
        let first = listen_first(&path).unwrap();
        let refused = || match listen_first(&path).unwrap_err() {
            Error::Served(path) => path,
            other => panic!("{other}"),
        };
        assert_eq!(refused(), path);
        // The one that was not accepted fills the queue: he does so also when no other can wait.
        begin(&first, 0).unwrap();
        assert_eq!(refused(), path);
        drop(first);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        listen_first(&path).unwrap();
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_named_with_its_length() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = listen(&path).unwrap_err();
        assert!(error.to_string().ends_with("has 125 bytes, and a socket's path has at most 107"));
        assert!(error.hint().unwrap().contains("--runtime-dir"));
    }
}
