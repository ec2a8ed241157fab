//! A tap device as a descriptor: it is not persistent, so the kernel removes it when the last descriptor closes,
//! whoever dies and how.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::libc;

use crate::value::IfName;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is taken.
    #[error("an interface of that name is in use")]
    InUse,
    /// Not root.
    #[error("permission denied: a tap needs CAP_NET_ADMIN")]
    NotPermitted,
    /// No driver.
    #[error("there is no /dev/net/tun")]
    NoTun,
    /// Anything else.
    #[error(transparent)]
    Other(io::Error),
}

impl Error {
    /// The host is at fault, and may be better soon; who runs qvm is as it was told to be.
    pub fn is_the_hosts(&self) -> bool {
        !matches!(self, Self::NotPermitted)
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse => Some(
                "`ip -d link show` tells whose it is; give this NIC another name with `tap = …` in its `[nic.NAME]`"
                    .into(),
            ),
            Self::NotPermitted => Some(
                "run it as root, or leave `bridge` out: the user-mode network needs no privileges".into(),
            ),
            Self::NoTun => Some("load the driver: `modprobe tun`".into()),
            Self::Other(_) => None,
        }
    }
}

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF` (linux/if_tun.h): makes the descriptor an interface.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes the tap `name`, with the virtio header that QEMU wants.
///
/// # Errors
/// The name is taken, the caller may not, or there is no driver.
pub fn open(name: &IfName) -> Result<OwnedFd, Error> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let tun = tun.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted,
        _ => Error::Other(error),
    })?;
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // An `IfName` has at most 15 bytes, so the NUL behind it stays.
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and `request` is a whole `ifreq` that outlives the call.
    match unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(tun.into()),
        // EINVAL: an interface of another kind has the name.
        Err(nix::Error::EBUSY | nix::Error::EEXIST | nix::Error::EINVAL) => Err(Error::InUse),
        Err(nix::Error::EPERM | nix::Error::EACCES) => Err(Error::NotPermitted),
        Err(error) => Err(Error::Other(error.into())),
    }
}
