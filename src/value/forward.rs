//! `Forward`: a port of the host that a user-mode network forwards to the guest.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    str::FromStr,
};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// The transport protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `[ADDRESS:]HOSTPORT:GUESTPORT[/tcp|/udp]`. The default address is 127.0.0.1, so a port is not
/// reachable from the network by default. QEMU's user-mode network forwards only IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Forward {
    /// The address and port on which the host listens.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest: u16,
    /// The transport protocol of a forwarded port.
    pub protocol: Protocol,
}

impl FromStr for Forward {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let refuse = || {
            Refused::new(format!(
                "`{}` is not a port forward: write `HOSTPORT:GUESTPORT` or \
                 `ADDRESS:HOSTPORT:GUESTPORT` (IPv4), and append `/udp` for UDP",
                shown(text)
            ))
        };
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(refuse()),
        };
        let mut parts = ports.rsplit(':');
        let port = |part: Option<&str>| {
            part.filter(|p| p.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|p| p.parse::<u16>().ok())
                .filter(|p| *p != 0)
                .ok_or_else(refuse)
        };
        let guest = port(parts.next())?;
        let host_port = port(parts.next())?;
        let address = match parts.next() {
            None => Ipv4Addr::LOCALHOST,
            Some(address) => match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => address,
                Ok(IpAddr::V6(_)) | Err(_) => return Err(refuse()),
            },
        };
        if parts.next().is_some() {
            return Err(refuse());
        }
        Ok(Self { host: SocketAddrV4::new(address, host_port), guest, protocol })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol)
    }
}

serde_by_text!(Forward);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_address_is_loopback() {
        for (text, shown) in [
            ("2222:22", "127.0.0.1:2222:22/tcp"),
            ("0.0.0.0:80:8080", "0.0.0.0:80:8080/tcp"),
            ("5353:53/udp", "127.0.0.1:5353:53/udp"),
            ("127.0.0.2:1:65535/tcp", "127.0.0.2:1:65535/tcp"),
        ] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), shown);
            assert_eq!(shown.parse::<Forward>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn invalid_text_is_refused() {
        for text in [
            "",
            "22",
            "0:22",
            "22:0",
            "65536:22",
            "a:22",
            "22:",
            ":22",
            "22:22/sctp",
            "+22:22",
            "localhost:2222:22",
            "[::1]:2222:22",
            "1.2.3.4:5:6:7",
            "2222:22,guestfwd=x",
            "2222:22/",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text:?} was accepted");
        }
    }
}
