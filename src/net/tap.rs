//! Making a tap device that lives as long as its descriptor, Documentation/networking/tuntap.rst.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF, c_char, c_short, ifreq},
};

use crate::value::{Explain, IfName};

const DEVICE: &str = "/dev/net/tun";

nix::ioctl_write_ptr_bad!(
    /// Makes the device, or attaches to the one of that name.
    tunsetiff,
    TUNSETIFF,
    ifreq
);

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no /dev/net/tun, or no driver behind it.
    #[error("`{DEVICE}` is not there")]
    NoDriver(#[source] io::Error),
    /// Not allowed to make a network device.
    #[error("making a network device is not allowed")]
    Denied {
        /// The tap.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
    /// An interface of this name is there, and in use or of another kind.
    #[error("the name is taken{}", by(.owner))]
    Taken {
        /// The tap.
        name: IfName,
        /// Whose or what it is, if the caller found out: see [`Error::of`].
        owner: Option<String>,
    },
    /// A tap with several queues, which is opened with that flag alone.
    #[error("it was made with several queues (`multi_queue`), and qvm uses taps with one")]
    MultiQueue {
        /// The tap.
        name: IfName,
    },
    /// Any other cause.
    #[error("the kernel refuses")]
    Io(#[source] io::Error),
}

fn by(owner: &Option<String>) -> String {
    owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default()
}

impl Error {
    /// The name that is taken, where that is the cause: worth a look at whose it is.
    pub fn taken(&self) -> Option<&IfName> {
        match self {
            Self::Taken { name, .. } => Some(name),
            Self::NoDriver(_) | Self::Denied { .. } | Self::MultiQueue { .. } | Self::Io(_) => None,
        }
    }

    /// The same for a tap that was made with several queues.
    #[must_use]
    pub fn of_multi_queue(self) -> Self {
        match self {
            Self::Taken { name, .. } => Self::MultiQueue { name },
            other => other,
        }
    }

    /// The same, naming whose or what the interface of that name is.
    #[must_use]
    pub fn of(self, owner: impl Into<String>) -> Self {
        match self {
            Self::Taken { name, .. } => Self::Taken { name, owner: Some(owner.into()) },
            other => other,
        }
    }

    /// What an error of opening or setting up [`DEVICE`] comes to.
    pub fn new(name: &IfName, source: io::Error) -> Self {
        let name = name.clone();
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            // ENODEV, ENXIO: the node is there, the module is not.
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Self::NoDriver(source),
            Errno::EPERM | Errno::EACCES => Self::Denied { name, source },
            // EBUSY: a tap that somebody has open. EINVAL: an interface of another kind, a tap with several queues,
            // or, seldom, EEXIST.
            Errno::EBUSY | Errno::EINVAL | Errno::EEXIST => Self::Taken { name, owner: None },
            _ => Self::Io(source),
        }
    }
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoDriver(_) => Some("load the module: `modprobe tun`".into()),
            Self::Denied { name, .. } => Some(format!(
                "run it as root, or with CAP_NET_ADMIN; or let root make it once for this user by \
                 `ip tuntap add {name} mode tap user USER`; or leave `bridge` out for the user-mode network"
            )),
            Self::Taken { name, .. } => {
                Some(format!("choose another with `tap = …`; `ip -d link show {name}` shows it"))
            }
            Self::MultiQueue { name } => Some(format!(
                "make it anew with one queue: `ip tuntap del {name} mode tap multi_queue`, then \
                 `ip tuntap add {name} mode tap`, with `user USER` if it had one; or choose another with `tap = …`"
            )),
            Self::Io(_) => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        !matches!(self, Self::Denied { .. })
    }
}

/// Makes the tap, with virtio-net headers, so that checksums and segmentation can be left to the guest's peer. The
/// kernel removes it when the last copy of the descriptor closes; nothing can leak. A persistent tap of this name
/// that nobody uses and this user may use is taken instead, and stays. `tun` is what /dev/net/tun was opened as, and becomes the tap.
///
/// # Errors
/// See [`Error`].
pub fn open(name: &IfName, tun: io::Result<OwnedFd>) -> Result<OwnedFd, Error> {
    let failed = |source| Error::new(name, source);
    let tun = tun.map_err(failed)?;
    // SAFETY: an ifreq is integers, pointers and unions of such; all zeros is one of its values.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // An IfName has at most 15 bytes: the 16th stays NUL.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes().take(IfName::MAX)) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) as c_short;
    // SAFETY: the descriptor is open, and TUNSETIFF reads (and writes back) one ifreq, which outlives the call.
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
    fn each_cause_has_its_words_and_its_way_out() {
        for (errno, text, hint) in [
            (Errno::ENOENT, "`/dev/net/tun` is not there", "modprobe tun"),
            (Errno::ENODEV, "`/dev/net/tun` is not there", "modprobe tun"),
            (Errno::EPERM, "making a network device is not allowed", "CAP_NET_ADMIN"),
            (Errno::EACCES, "making a network device is not allowed", "CAP_NET_ADMIN"),
            (Errno::EBUSY, "the name is taken", "tap = …"),
            (Errno::EINVAL, "the name is taken", "tap = …"),
        ] {
            let error = error(errno);
            assert_eq!(error.to_string(), text, "{errno}");
            assert!(error.hint().unwrap().contains(hint), "{errno}");
        }
        let error = error(Errno::EMFILE);
        assert_eq!((error.to_string().as_str(), error.hint()), ("the kernel refuses", None));
    }

    #[test]
    fn an_owner_is_named_where_a_name_is_taken() {
        let taken = error(Errno::EBUSY);
        assert_eq!(taken.taken().unwrap().as_str(), "qvm-web");
        assert_eq!(taken.of("`qvm:db:net`").to_string(), "the name is taken by `qvm:db:net`");
        let denied = error(Errno::EPERM).of("x");
        assert_eq!(denied.to_string(), "making a network device is not allowed");
        assert_eq!(denied.taken(), None);
    }
}
