//! `VncAddress`: where a VM's screen is served by VNC.

use std::{fmt, net::SocketAddr, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A socket of the VM's own, or a port of this host alone: what VNC says goes over the wire in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VncAddress {
    /// A Unix socket in the VM's runtime directory.
    Unix,
    /// A loopback address, and a port from 5900 on.
    Tcp(SocketAddr),
}

impl VncAddress {
    /// The port of display 0 (RFC 6143); QEMU counts displays.
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
                "`{}` is open to others, and VNC is not encrypted: write `127.0.0.1:{}`, and reach it by `ssh -L`",
                shown(text),
                at.port()
            ))),
            Ok(at) if at.port() >= Self::FIRST_PORT => Ok(Self::Tcp(at)),
            Ok(_) => Err(Refused::new(format!(
                "`{}` has a port below {}, and VNC's begin there",
                shown(text),
                Self::FIRST_PORT
            ))),
            Err(_) => Err(Refused::new(format!(
                "`{}` is not a place for VNC: write `unix`, or an address and a port as in `127.0.0.1:5901`",
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
    fn only_this_host_and_only_vncs_ports() {
        for good in ["unix", "127.0.0.1:5900", "127.0.0.5:6000", "[::1]:5901"] {
            assert_eq!(good.parse::<VncAddress>().unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("0.0.0.0:5900", "open to others"),
            ("192.168.1.5:5900", "open to others"),
            ("127.0.0.1:80", "below 5900"),
            ("localhost:5900", "not a place for VNC"),
            (":1", "not a place for VNC"),
            ("", "not a place for VNC"),
        ] {
            let refused = bad.parse::<VncAddress>().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
