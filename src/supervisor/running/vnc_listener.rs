//! The listener for viewers of the guest's screen: a socket or a port, opened before QEMU starts.

use std::{
    net::TcpListener,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use crate::{
    net::port,
    spec::{Display, Vm},
    store::layout::VmPaths,
    sys::{file, socket},
    value::{ErrorCode, Explain, VncAddress},
};

/// The maximum length of a VNC password in bytes (RFC 6143, 7.2.2: a DES key).
const PASSWORD: usize = 8;
/// Errors of the screen's listener.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The password cannot be read.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The password file does not exist.
    #[error("`{path}` does not exist ({at})")]
    NoPassword {
        /// The password file.
        path: PathBuf,
        /// The location in the VM file.
        at: String,
    },
    /// The password is not valid.
    #[error("the password in `{path}` {found} ({at})")]
    Password {
        /// The password file.
        path: PathBuf,
        /// The problem.
        found: String,
        /// The location in the VM file.
        at: String,
    },
    /// The port is in use.
    #[error("cannot serve the screen ({at})")]
    Port {
        /// The location in the VM file.
        at: String,
        /// The cause.
        source: port::Error,
    },
    /// The socket cannot be created.
    #[error("cannot serve the screen ({at})")]
    Socket {
        /// The location in the VM file.
        at: String,
        /// The cause.
        source: socket::Error,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Port { source, .. } => Some(source),
            Self::Socket { source, .. } => Some(source),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoPassword { .. } => ErrorCode::VncPasswordMissing,
            Self::Password { .. } => ErrorCode::VncPasswordInvalid,
            Self::File(..) | Self::Port { .. } | Self::Socket { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoPassword { path, .. } => {
                Some(format!("write one: `openssl rand -hex 4 >{}`", path.display()))
            }
            Self::Password { .. } => Some("viewers use only the first eight bytes".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Port { .. })
    }
}

/// A listening socket; no viewer is accepted yet.
#[derive(Debug)]
pub struct VncListener {
    pub(crate) at: VncAddress,
    pub(crate) socket: VncSocket,
    pub(crate) password: Option<String>,
}

#[derive(Debug)]
pub(crate) enum VncSocket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Opens the configured listener; `None` without one.
///
/// # Errors
/// See [`Error`].
pub(crate) fn open(vm: &Vm, paths: &VmPaths) -> Result<Option<VncListener>, Error> {
    let Some(Display { vnc: Some(at), password_file }) = &vm.display else { return Ok(None) };
    let place = || vm.at("display.vnc");
    let socket = match at {
        VncAddress::Unix => {
            let listener = socket::listen(&paths.vnc_socket());
            VncSocket::Unix(listener.map_err(|source| Error::Socket { at: place(), source })?)
        }
        VncAddress::Tcp(at) => {
            let listener = port::listen_tcp(*at);
            VncSocket::Tcp(listener.map_err(|source| Error::Port { at: place(), source })?)
        }
    };
    let password = password_file.as_ref().map(|file| password(vm, file)).transpose()?;
    Ok(Some(VncListener { at: *at, socket, password }))
}

/// Returns the password for a port, without the final newline.
pub(crate) fn password(vm: &Vm, path: &Path) -> Result<String, Error> {
    let at = || vm.at("display.passwordFile");
    let Some(bytes) = file::read(path)? else {
        return Err(Error::NoPassword { path: path.to_owned(), at: at() });
    };
    let wrong = |found| Error::Password { path: path.to_owned(), found, at: at() };
    let bytes = bytes.trim_ascii_end();
    if !(1..=PASSWORD).contains(&bytes.len()) {
        let found = format!("has {} bytes, but VNC accepts 1 to {PASSWORD}", bytes.len());
        return Err(wrong(found));
    }
    // QMP requires text.
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not text (UTF-8)".to_owned()))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::{Host, vm};

    fn vm_with(display: &str) -> Vm {
        vm(&format!("vcpu = 1\n{display}"))
    }

    #[test]
    fn vm_without_an_address_has_no_listener() {
        let host = Host::new();
        for display in ["", "[display]\n"] {
            assert!(open(&vm_with(display), host.ctx.paths()).unwrap().is_none());
        }
    }

    #[test]
    fn taken_port_is_a_host_fault() {
        let host = Host::new();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let secret = host.dir.path().join("secret");
        std::fs::write(&secret, "12345678\n").unwrap();
        let display =
            format!("[display]\nvnc = \"{at}\"\npasswordFile = \"{}\"\n", secret.display());
        let error = open(&vm_with(&display), host.ctx.paths()).unwrap_err();
        assert!(matches!(error, Error::Port { .. }) && error.is_host_fault(), "{error:?}");
        drop(taken);
        let listener = open(&vm_with(&display), host.ctx.paths()).unwrap().unwrap();
        assert_eq!(listener.password.as_deref(), Some("12345678"));
    }

    #[test]
    fn password_has_one_to_eight_bytes_of_text() {
        let host = Host::new();
        let vm = vm_with("[display]\n");
        let path = host.dir.path().join("secret");
        let missing = password(&vm, &path).unwrap_err();
        assert!(matches!(missing, Error::NoPassword { .. }) && missing.hint().is_some());
        for (text, is_valid) in [
            (&b"1"[..], true),
            (b"12345678\n", true),
            (b"", false),
            (b"123456789", false),
            (b"\xff", false),
        ] {
            std::fs::write(&path, text).unwrap();
            let found = password(&vm, &path);
            assert_eq!(found.is_ok(), is_valid, "{text:?}");
            assert!(found.err().is_none_or(|error| !error.is_host_fault()));
        }
    }
}
