//! Checks the host's ports that QEMU forwards.

use crate::{
    net::port,
    spec::{Link, Nic, Vm},
    value::{ErrorCode, Explain},
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

    fn own_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Port { .. } | Self::NoSockets(..) => None,
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::supervisor::tests::vm;

    /// Checks the first NIC of a VM that forwards this port of the host.
    fn check(shut_off: bool, port: u16) -> Result<(), Error> {
        let vm = vm(&format!("[nic.net]\nforward = [\"127.0.0.1:{port}:22\"]\n"));
        check_forwards(shut_off, &vm, &vm.nics[0])
    }

    #[test]
    fn port_in_use_is_named_with_its_line() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = check(false, port).unwrap_err();
        let Error::Port { at, .. } = &error else { panic!("{error:?}") };
        assert!(at.contains("web.toml:2"), "{at}");
        drop(taken);
        check(false, port).unwrap();
    }

    #[test]
    fn bridged_nic_forwards_nothing() {
        let vm = vm("[nic.net]\nbridge = \"br0\"\n");
        check_forwards(true, &vm, &vm.nics[0]).unwrap();
    }
}
