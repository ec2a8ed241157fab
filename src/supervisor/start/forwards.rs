//! Checks the host's ports that QEMU forwards.

use crate::{
    net::port,
    spec::{Link, Nic, Vm},
    value::Explain,
};

/// Why the ports of a NIC cannot be forwarded.
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
    /// User-mode networking cannot open sockets.
    #[error(transparent)]
    NoSockets(#[from] port::NoSockets),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Port { source, .. } => Some(source),
            Self::NoSockets(error) => Some(error),
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Port { .. })
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
