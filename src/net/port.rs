//! The host's ports: listened on, and whether QEMU could. QEMU only says that it could not, and not why.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use rustix::io::Errno;

use crate::value::{Explain, Forward, Protocol};

/// IP sockets are not to be had: by a unit's `RestrictAddressFamilies=` or `PrivateNetwork=`, or a kernel without them.
#[derive(Debug, thiserror::Error)]
#[error("IP sockets are closed to this process")]
pub struct NoSockets(#[source] io::Error);

impl Explain for NoSockets {
    fn own_hint(&self) -> Option<String> {
        Some(
            "the VM's unit is closed to what its VM file did not need when it was started: stop the VM and start it"
                .into(),
        )
    }
}

/// Whether there are IP sockets at all, and somebody to reach by them, unless this process is in an `empty` network; QEMU's own network
/// would only be silent without.
///
/// # Errors
/// There are none.
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
    fn own_hint(&self) -> Option<String> {
        let port = self.at.port();
        let flag = match self.protocol {
            Protocol::Tcp => 't',
            Protocol::Udp => 'u',
        };
        match self.source.kind() {
            io::ErrorKind::AddrInUse => Some(format!(
                "`ss -{flag}lnp sport = {port}` tells whose it is; write another port"
            )),
            io::ErrorKind::PermissionDenied => Some(
                "ports below 1024 are root's (sysctl net.ipv4.ip_unprivileged_port_start): write another one"
                    .into(),
            ),
            io::ErrorKind::AddrNotAvailable => Some(
                "this host does not have that address: `ip address` shows those it has, and `0.0.0.0` is all of them"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Listens on the port for a moment. Whoever takes it between this and QEMU has QEMU fail, with its own words.
///
/// # Errors
/// It is taken, not this host's, or not allowed.
pub fn check(forward: &Forward) -> Result<(), Error> {
    let tried = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(forward.host).map(drop),
        // Without SO_REUSEADDR, which QEMU sets: by that two of them would get one UDP port.
        Protocol::Udp => UdpSocket::bind(forward.host).map(drop),
    };
    tried.map_err(|source| Error { at: forward.host.into(), protocol: forward.protocol, source })
}

/// Listens on a TCP port of any address, for this program.
///
/// # Errors
/// As of [`check`].
pub fn listen_tcp(at: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(at).map_err(|source| Error { at, protocol: Protocol::Tcp, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = [(tcp.local_addr().unwrap(), "tcp"), (udp.local_addr().unwrap(), "udp")];
        for (address, protocol) in taken {
            let forward = format!("{address}:22/{protocol}").parse().unwrap();
            let error = check(&forward).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot listen on `{address}` ({protocol})"));
            assert!(error.hint().unwrap().contains(&format!("sport = {}", address.port())));
        }
        drop((tcp, udp));
        for (address, protocol) in taken {
            check(&format!("{address}:22/{protocol}").parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn an_address_of_another_host_is_none_of_ours() {
        let error = check(&"192.0.2.1:2222:22".parse().unwrap()).unwrap_err();
        assert!(error.hint().unwrap().contains("does not have that address"), "{error}");
    }
}
