//! The guest's screen and keyboard: served by VNC, photographed, typed at.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::oneshot;

use super::supervise::{QMP_LIMIT, Supervisor};
use crate::{
    control::types::Refusal,
    host::{file, port},
    plan::{keys::Chord, layout::VmPaths},
    spec::{Display, Vm},
    value::{VncAddress, chain},
};

/// How long QEMU holds a key, and how long after that the next one comes: a PS/2 keyboard keeps 16 bytes for a guest that is slow.
const HOLD: Duration = Duration::from_millis(20);
const BETWEEN: Duration = Duration::from_millis(30);
/// Which of QEMU's sets of descriptors a picture is written to.
const PICTURE: u32 = 1;
/// What VNC uses of a password (RFC 6143, 7.2.2: a DES key).
const PASSWORD: usize = 8;

/// Why the screen cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its password cannot be read, or kept.
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
    #[error("the password in `{path}` has {found}, and VNC takes 1 to {PASSWORD} ({at})")]
    Password {
        /// The file.
        path: PathBuf,
        /// How many bytes it has.
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
}

impl Error {
    /// The host is at fault, and not the VM.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::File(error) => error.is_the_hosts(),
            Self::Port { .. } => true,
            Self::NoPassword { .. } | Self::Password { .. } => false,
        }
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Port { source, .. } => source.hint(),
            Self::NoPassword { path, .. } => {
                Some(format!("write one: `openssl rand -hex 4 >{}`", path.display()))
            }
            Self::Password { .. } => Some("more than eight are not looked at by any viewer".into()),
        }
    }
}

/// Makes ready what QEMU's VNC server needs: a port that is free, and the password without the line's end that an editor puts behind it.
///
/// # Errors
/// See [`Error`].
pub(super) fn prepare(vm: &Vm, paths: &VmPaths) -> Result<(), Error> {
    let Some(Display { vnc: Some(VncAddress::Tcp(at)), password_file }) = &vm.display else {
        return Ok(());
    };
    let place = || vm.at("display.vnc");
    port::check_tcp(*at).map_err(|source| Error::Port { at: place(), source })?;
    let Some(path) = password_file else { return Ok(()) };
    let place = || vm.at("display.passwordFile");
    let Some(bytes) = file::read(path)? else {
        return Err(Error::NoPassword { path: path.clone(), at: place() });
    };
    let password = bytes.trim_ascii_end();
    if !(1..=PASSWORD).contains(&password.len()) {
        let found = format!("{} bytes", password.len());
        return Err(Error::Password { path: path.clone(), found, at: place() });
    }
    Ok(file::write_volatile(&paths.vnc_password(), password, 0o600)?)
}

/// Opens QEMU's socket to the group, which may use the control socket as well.
///
/// # Errors
/// It is not there.
pub(super) fn open_to_group(vm: &Vm, paths: &VmPaths) -> Result<(), file::Error> {
    match &vm.display {
        Some(Display { vnc: Some(VncAddress::Unix), .. }) => {
            file::set_mode(&paths.vnc_socket(), 0o660)
        }
        _ => Ok(()),
    }
}

/// Where the screen is served.
pub(super) fn vnc(vm: &Vm, paths: &VmPaths) -> Option<String> {
    match vm.display.as_ref()?.vnc? {
        VncAddress::Unix => Some(format!("unix:{}", paths.vnc_socket().display())),
        VncAddress::Tcp(at) => Some(at.to_string()),
    }
}

impl Supervisor {
    /// A picture of the screen, as PNG, in a file that has no name.
    pub(super) fn screenshot(&self, reply: oneshot::Sender<Result<OwnedFd, Refusal>>) {
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        if self.vm.display.is_none() {
            let why = "it has no screen; `[display]` in the VM file gives it one";
            let _ = reply.send(Err(Refusal::Failed(why.to_owned())));
            return;
        }
        let client = qemu.client.clone();
        tokio::spawn(async move {
            let taken = picture(&client).await;
            let _ = reply.send(taken.map_err(|why| {
                Refusal::Failed(format!("cannot take a picture of the screen: {why}"))
            }));
        });
    }

    /// Presses keys, one chord after the other.
    pub(super) fn press(&self, chords: Vec<Chord>, reply: oneshot::Sender<Result<(), Refusal>>) {
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        let client = qemu.client.clone();
        tokio::spawn(async move {
            for chord in chords {
                if let Err(error) = client.press(chord.keys(), HOLD, QMP_LIMIT).await {
                    let why = format!("`{chord}`: {}", chain(&error));
                    let _ = reply.send(Err(Refusal::Failed(why)));
                    return;
                }
                tokio::time::sleep(HOLD + BETWEEN).await;
            }
            let _ = reply.send(Ok(()));
        });
    }
}

async fn picture(client: &qmp::Client) -> Result<OwnedFd, String> {
    let made = || -> io::Result<(OwnedFd, OwnedFd)> {
        let memory = memfd_create("qvm-screen", MemfdFlags::CLOEXEC)?;
        // QEMU takes only a descriptor of exactly the mode that it would open a file with.
        let number = std::os::fd::AsRawFd::as_raw_fd(&memory);
        let path = format!("/proc/self/fd/{number}");
        let write = File::options().write(true).open(Path::new(&path))?;
        Ok((memory, write.into()))
    };
    let (memory, write) = made().map_err(|error| error.to_string())?;
    client.picture(PICTURE, write, QMP_LIMIT).await.map_err(|error| chain(&error))?;
    Ok(memory)
}
