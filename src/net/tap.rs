//! Creates tap devices that exist as long as their descriptors,
//! Documentation/networking/tuntap.rst.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF, c_char, c_short, ifreq},
};

use crate::value::{ErrorCode, Explain, IfName};

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr_bad!(
    /// Creates the device, or attaches to an existing one.
    tunsetiff,
    TUNSETIFF,
    ifreq
);

/// Why a tap cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/net/tun or its driver does not exist.
    #[error("`{DEVICE}` does not exist")]
    NoDriver(#[source] io::Error),
    /// The capability is missing.
    #[error("no permission to create a network device")]
    Denied {
        /// The tap.
        name: IfName,
        /// The cause.
        source: io::Error,
    },
    /// An interface with this name is in use or of another kind.
    #[error("the name is in use{}", by(.owner))]
    Taken {
        /// The tap.
        name: IfName,
        /// The owner or kind of the interface, if known: see [`Error::of`].
        owner: Option<String>,
    },
    /// A tap with several queues, which can only be opened with that flag.
    #[error("the tap has several queues (`multi_queue`); qvm requires a tap with one queue")]
    MultiQueue {
        /// The tap.
        name: IfName,
    },
    /// Any other error.
    #[error("cannot create the tap")]
    Io(#[source] io::Error),
}

fn by(owner: &Option<String>) -> String {
    owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default()
}

impl Error {
    /// Returns the name if it is in use.
    pub fn taken(&self) -> Option<&IfName> {
        match self {
            Self::Taken { name, .. } => Some(name),
            Self::NoDriver(_) | Self::Denied { .. } | Self::MultiQueue { .. } | Self::Io(_) => None,
        }
    }

    /// Converts the error for a tap with several queues.
    #[must_use]
    pub fn of_multi_queue(self) -> Self {
        match self {
            Self::Taken { name, .. } => Self::MultiQueue { name },
            other => other,
        }
    }

    /// Adds the owner or kind of the interface.
    #[must_use]
    pub fn of(self, owner: impl Into<String>) -> Self {
        match self {
            Self::Taken { name, .. } => Self::Taken { name, owner: Some(owner.into()) },
            other => other,
        }
    }

    /// Classifies an error of opening or configuring [`DEVICE`].
    pub fn new(name: &IfName, source: io::Error) -> Self {
        let name = name.clone();
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            // ENODEV, ENXIO: the device node exists, but not its module.
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Self::NoDriver(source),
            Errno::EPERM | Errno::EACCES => Self::Denied { name, source },
            // EBUSY: a tap that another process has open. EINVAL, rarely EEXIST: an interface of
            // another kind, or a tap with several queues.
            Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => Self::Taken { name, owner: None },
            _ => Self::Io(source),
        }
    }
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoDriver(..) => ErrorCode::TunMissing,
            Self::Denied { .. } => ErrorCode::TapDenied,
            Self::Taken { .. } => ErrorCode::TapInUse,
            Self::MultiQueue { .. } => ErrorCode::TapMultiQueue,
            Self::Io(..) => ErrorCode::TapFailed,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoDriver(_) => Some("load the module: `modprobe tun`".into()),
            Self::Denied { name, .. } => Some(format!(
                "run as root or with CAP_NET_ADMIN; or create the tap as root for this user with \
                 `ip tuntap add {name} mode tap user USER`; or remove `bridge` to use a user-mode \
                 network"
            )),
            Self::Taken { name, .. } => Some(format!(
                "choose another name with `tap = …`; `ip -d link show {name}` shows the interface"
            )),
            Self::MultiQueue { name } => Some(format!(
                "create it again with one queue: `ip tuntap del {name} mode tap multi_queue`, then \
                 `ip tuntap add {name} mode tap`, with `user USER` if it had one; or choose \
                 another name with `tap = …`"
            )),
            Self::Io(_) => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        !matches!(self, Self::Denied { .. })
    }
}

/// Creates the tap with virtio-net headers, so that checksums and segmentation can be offloaded.
/// The kernel removes it when the last copy of the descriptor is closed. An existing persistent tap
/// with this name is used if it is free and accessible. `tun` is the result of opening
/// /dev/net/tun, and becomes the tap.
///
/// # Errors
/// See [`Error`].
pub fn open(name: &IfName, tun: io::Result<OwnedFd>) -> Result<OwnedFd, Error> {
    let failed = |source| Error::new(name, source);
    let tun = tun.map_err(failed)?;
    // SAFETY: `ifreq` contains integers, pointers and unions of these, for which zero is valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // An IfName has at most 15 bytes, so the 16th remains NUL.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes().take(IfName::MAX)) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) as c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which outlives the
    // call.
    unsafe { tunsetiff(tun.as_raw_fd(), &request) }.map_err(|e| failed(e.into()))?;
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> Error {
        Error::new(&"qvm-web".parse().unwrap(), io::Error::from_raw_os_error(errno as i32))
    }

    #[test]
    fn each_errno_has_a_message_and_hint() {
        for (errno, text, hint) in [
            (Errno::ENOENT, "`/dev/net/tun` does not exist", "modprobe tun"),
            (Errno::ENODEV, "`/dev/net/tun` does not exist", "modprobe tun"),
            (Errno::EPERM, "no permission to create a network device", "CAP_NET_ADMIN"),
            (Errno::EACCES, "no permission to create a network device", "CAP_NET_ADMIN"),
            (Errno::EBUSY, "the name is in use", "tap = …"),
            (Errno::EINVAL, "the name is in use", "tap = …"),
        ] {
            let error = error(errno);
            assert_eq!(error.to_string(), text, "{errno}");
            assert!(error.hint().unwrap().contains(hint), "{errno}");
        }
        let error = error(Errno::EMFILE);
        assert_eq!((error.to_string().as_str(), error.hint()), ("cannot create the tap", None));
    }

    #[test]
    fn owner_of_existing_interface_is_named() {
        let taken = error(Errno::EBUSY);
        assert_eq!(taken.taken().unwrap().as_str(), "qvm-web");
        assert_eq!(taken.of("`qvm:db:net`").to_string(), "the name is in use by `qvm:db:net`");
        let denied = error(Errno::EPERM).of("x");
        assert_eq!(denied.to_string(), "no permission to create a network device");
        assert_eq!(denied.taken(), None);
    }
}
