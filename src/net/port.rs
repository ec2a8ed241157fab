//! Checks whether the host's ports are free: QEMU reports a failure to listen without its reason.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use rustix::io::Errno;

use crate::value::{ErrorCode, Explain, Forward, Protocol};

/// IP sockets are not available: because of the unit's `RestrictAddressFamilies=` or
/// `PrivateNetwork=`, or the kernel.
#[derive(Debug, thiserror::Error)]
#[error("this process may not open IP sockets")]
pub struct NoSockets(#[source] io::Error);

impl Explain for NoSockets {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::PortUnusable)
    }

    fn own_hint(&self) -> Option<String> {
        Some(
            "the sandbox of the unit follows the VM file at its start: stop the VM and start it \
             again"
                .into(),
        )
    }
}

/// Checks that IP sockets can be opened and that this process is not in an `empty` network, in
/// which a user-mode network would silently have no connection.
///
/// # Errors
/// IP sockets are not available.
pub fn sockets(empty: bool) -> Result<(), NoSockets> {
    if empty {
        return Err(NoSockets(Errno::NETUNREACH.into()));
    }
    match UdpSocket::bind("127.0.0.1:0") {
        Err(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            Err(NoSockets(error))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `{at}` ({protocol})")]
pub struct Error {
    at: SocketAddr,
    protocol: Protocol,
    source: io::Error,
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self.source.kind() {
            io::ErrorKind::AddrInUse => ErrorCode::PortInUse,
            _ => ErrorCode::PortUnusable,
        })
    }

    fn own_hint(&self) -> Option<String> {
        let port = self.at.port();
        let flag = match self.protocol {
            Protocol::Tcp => 't',
            Protocol::Udp => 'u',
        };
        match self.source.kind() {
            io::ErrorKind::AddrInUse => Some(format!(
                "find the process with `ss -{flag}lnp sport = {port}`, or use another port"
            )),
            io::ErrorKind::PermissionDenied => Some(
                "only root may use ports below 1024 (sysctl net.ipv4.ip_unprivileged_port_start): \
                 use another port"
                    .into(),
            ),
            io::ErrorKind::AddrNotAvailable => Some(
                "this host does not have this address: list its addresses with `ip address`, or \
                 use `0.0.0.0` for all"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Checks a port by listening on it for a moment. If another process takes it before QEMU, QEMU
/// fails with its own message.
///
/// # Errors
/// The port is in use, the address is not local, or the kernel refuses.
pub fn check(forward: &Forward) -> Result<(), Error> {
    let tried = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(forward.host).map(drop),
        // Without SO_REUSEADDR, which QEMU sets and with which two processes could share a UDP
        // port.
        Protocol::Udp => UdpSocket::bind(forward.host).map(drop),
    };
    tried.map_err(|source| Error { at: forward.host.into(), protocol: forward.protocol, source })
}

/// Listens on a TCP port.
///
/// # Errors
/// As for [`check`].
pub fn listen_tcp(at: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(at).map_err(|source| Error { at, protocol: Protocol::Tcp, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_port_is_reported() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = [(tcp.local_addr().unwrap(), "tcp"), (udp.local_addr().unwrap(), "udp")];
        for (address, protocol) in taken {
            let forward = format!("{address}:22/{protocol}").parse().unwrap();
            let error = check(&forward).unwrap_err();
            assert_eq!(error.code(), ErrorCode::PortInUse);
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            assert!(error.hint().unwrap().contains(&address.port().to_string()));
        }
        drop((tcp, udp));
        for (address, protocol) in taken {
            check(&format!("{address}:22/{protocol}").parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn foreign_address_is_reported() {
        let error = check(&"192.0.2.1:2222:22".parse().unwrap()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PortUnusable);
        assert!(error.hint().is_some());
    }
}
