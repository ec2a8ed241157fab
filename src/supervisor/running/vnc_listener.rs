//! Where viewers of the guest's screen come to: a socket or a port, listened on before QEMU starts.

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
    value::VncAddress,
};

/// What VNC uses of a password (RFC 6143, 7.2.2: a DES key).
const PASSWORD: usize = 8;
/// Why the screen cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its password cannot be read.
    #[error(transparent)]
    File(#[from] file::Error),
    /// There is none.
    #[error("`{path}` does not exist ({at})")]
    NoPassword {
        /// The file.
        path: PathBuf,
        /// Where the VM file says so.
        at: String,
    },
    /// It cannot be one.
    #[error("the password in `{path}` {found} ({at})")]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
        /// Where the VM file says so.
        at: String,
    },
    /// Its port is taken.
    #[error("cannot serve the screen ({at})")]
    Port {
        /// Where the VM file says so.
        at: String,
        /// Why.
        source: port::Error,
    },
    /// Its socket cannot be made.
    #[error("cannot serve the screen ({at})")]
    Socket {
        /// Where the VM file says so.
        at: String,
        /// Why.
        source: socket::Error,
    },
}

impl Error {
    /// The host is at fault, and not the VM.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::File(error) => error.is_the_hosts(),
            Self::Socket { source, .. } => source.is_the_hosts(),
            Self::Port { .. } => true,
            Self::NoPassword { .. } | Self::Password { .. } => false,
        }
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Port { source, .. } => source.hint(),
            Self::Socket { source, .. } => source.hint(),
            Self::NoPassword { path, .. } => {
                Some(format!("write one: `openssl rand -hex 4 >{}`", path.display()))
            }
            Self::Password { .. } => Some("more than eight are not looked at by any viewer".into()),
        }
    }
}

/// A place to come to, where nobody is let in yet.
#[derive(Debug)]
pub struct Door {
    pub(crate) at: VncAddress,
    pub(crate) listener: Listener,
    pub(crate) password: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Listens where the VM file says, if it does.
///
/// # Errors
/// See [`Error`].
pub(crate) fn open(vm: &Vm, paths: &VmPaths) -> Result<Option<Door>, Error> {
    let Some(Display { vnc: Some(at), password_file }) = &vm.display else { return Ok(None) };
    let place = || vm.at("display.vnc");
    let listener = match at {
        VncAddress::Unix => {
            let listener = socket::listen(&paths.vnc_socket());
            Listener::Unix(listener.map_err(|source| Error::Socket { at: place(), source })?)
        }
        VncAddress::Tcp(at) => {
            let listener = port::listen_tcp(*at);
            Listener::Tcp(listener.map_err(|source| Error::Port { at: place(), source })?)
        }
    };
    let password = password_file.as_ref().map(|file| password(vm, file)).transpose()?;
    Ok(Some(Door { at: *at, listener, password }))
}

/// The password for a port, without the line's end that an editor puts behind it.
pub(crate) fn password(vm: &Vm, path: &Path) -> Result<String, Error> {
    let at = || vm.at("display.passwordFile");
    let Some(bytes) = file::read(path)? else {
        return Err(Error::NoPassword { path: path.to_owned(), at: at() });
    };
    let wrong = |found| Error::Password { path: path.to_owned(), found, at: at() };
    let bytes = bytes.trim_ascii_end();
    if !(1..=PASSWORD).contains(&bytes.len()) {
        let found = format!("has {} bytes, and VNC takes 1 to {PASSWORD}", bytes.len());
        return Err(wrong(found));
    }
    // QMP carries text.
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("is not text (UTF-8)".to_owned()))?;
    Ok(text.to_owned())
}
