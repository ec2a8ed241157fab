//! `VncAddress`: the address at which a VM's VNC server listens.

use std::{fmt, net::SocketAddr, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A Unix socket or a loopback address: VNC is not encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VncAddress {
    /// A Unix socket in the VM's runtime directory.
    Unix,
    /// A loopback address with a port of at least 5900.
    Tcp(SocketAddr),
}

impl VncAddress {
    /// The port of display 0 (RFC 6143); QEMU numbers displays from there.
    pub const FIRST_PORT: u16 = 5900;
}

impl FromStr for VncAddress {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        match text.parse::<SocketAddr>() {
            Ok(at) if !at.ip().is_loopback() => Err(Refused::new(format!(
                "`{}` is not a loopback address, and VNC is not encrypted: write `127.0.0.1:{}` \
                 and connect with `ssh -L`",
                shown(text),
                at.port()
            ))),
            Ok(at) if at.port() >= Self::FIRST_PORT => Ok(Self::Tcp(at)),
            Ok(_) => Err(Refused::new(format!(
                "`{}` has a port below {}, the first port of VNC",
                shown(text),
                Self::FIRST_PORT
            ))),
            Err(_) => Err(Refused::new(format!(
                "`{}` is not a VNC address: write `unix`, or an address and a port such as \
                 `127.0.0.1:5901`",
                shown(text)
            ))),
        }
    }
}

impl fmt::Display for VncAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Tcp(at) => at.fmt(f),
        }
    }
}

serde_by_text!(VncAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_vnc_ports() {
        for good in ["unix", "127.0.0.1:5900", "127.0.0.5:6000", "[::1]:5901"] {
            assert_eq!(good.parse::<VncAddress>().unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("0.0.0.0:5900", "not a loopback address"),
            ("192.168.1.5:5900", "not a loopback address"),
            ("127.0.0.1:80", "below 5900"),
            ("localhost:5900", "not a VNC address"),
            (":1", "not a VNC address"),
            ("", "not a VNC address"),
        ] {
            let refused = bad.parse::<VncAddress>().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
