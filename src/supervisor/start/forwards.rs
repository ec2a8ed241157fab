//! Whether QEMU will get the ports of the host that it is to listen on.

use crate::{
    net::port,
    spec::{Link, Nic, Vm},
};

/// Why a NIC is not given the ports.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port of the host.
    #[error("cannot forward ports ({at})")]
    Port {
        /// Where the VM file names the ports.
        at: String,
        /// Why.
        source: port::Error,
    },
    /// QEMU's own network would be silent.
    #[error(transparent)]
    NoSockets(#[from] port::NoSockets),
}

impl Error {
    /// The host is at fault, and not the VM.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self, Self::Port { .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Port { source, .. } => source.hint(),
            Self::NoSockets(error) => error.hint(),
        }
    }
}

/// Checks the ports of a NIC; `shut_off` as of [`super::Settings::shut_off`].
pub(crate) fn check_forwards(shut_off: bool, vm: &Vm, nic: &Nic) -> Result<(), Error> {
    let Link::User { forward } = &nic.link else { return Ok(()) };
    port::sockets(shut_off)?;
    let at = || vm.at(&format!("nic.{}.forward", nic.name));
    for forward in forward {
        port::check(forward).map_err(|source| Error::Port { at: at(), source })?;
    }
    Ok(())
}
