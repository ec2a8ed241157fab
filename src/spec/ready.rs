//! `ready`: when a VM counts as started, and how the supervisor detects it.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use toml::de::DeValue;

use super::{
    nearest,
    nic::{Link, Nic},
    reading::{At, Reading},
    written::{Refusal, Written},
};
use crate::value::{Protocol, shown};

/// When a VM counts as started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ready {
    /// The vCPUs run.
    #[default]
    Running,
    /// The guest agent responds.
    Agent,
    /// The guest accepts connections on this TCP port.
    Tcp(u16),
    /// cloud-init has finished, according to the guest agent.
    CloudInit,
}

/// Displays the value as in the VM file.
impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Agent => f.write_str("agent"),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
            Self::CloudInit => f.write_str("cloud-init"),
        }
    }
}

/// How the host connects to a TCP port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// At the address of the guest.
    Direct(SocketAddr),
    /// At an address where QEMU listens. QEMU accepts a connection before the guest does.
    Forwarded(SocketAddrV4),
}

/// Returns how to connect to a port of the guest: its `ip` behind a bridge, else a `forward`.
pub(super) fn reach(nics: &[Nic], port: u16) -> Option<Reach> {
    let direct = nics.iter().find_map(|nic| match (&nic.link, nic.ip) {
        (Link::Bridge { .. }, Some(ip)) => Some(SocketAddr::new(ip.address(), port)),
        _ => None,
    });
    let forwarded = || {
        nics.iter().find_map(|nic| {
            let Link::User { forward } = &nic.link else { return None };
            let to = |f: &&crate::value::Forward| f.protocol == Protocol::Tcp && f.guest == port;
            forward.iter().find(to).map(|forward| forward.host)
        })
    };
    direct.map(Reach::Direct).or_else(|| {
        let host = forwarded()?;
        // A wildcard address includes this one.
        let address = Some(*host.ip()).filter(|ip| !ip.is_unspecified());
        let address = address.unwrap_or(Ipv4Addr::LOCALHOST);
        Some(Reach::Forwarded(SocketAddrV4::new(address, host.port())))
    })
}

impl Ready {
    /// Reports a condition that the rest of the file makes impossible.
    pub(super) fn check(self, r: &mut Reading<'_>, at: &At, nics: &[Nic], seed: bool) {
        match self {
            Self::Tcp(port) if reach(nics, port).is_none() => {
                let message = format!("the host cannot reach port {port} of the guest");
                let hint = format!(
                    "add the guest's `ip` if it has a `bridge`, otherwise `forward = \
                     [\"HOSTPORT:{port}\"]`"
                );
                r.refuse(at, message, Some(hint));
            }
            Self::CloudInit if !seed => {
                let hint = "write `[cloudInit]`, or `ready = \"agent\"`";
                r.refuse(at, "cloud-init requires a seed", Some(hint.into()));
            }
            Self::Running | Self::Agent | Self::Tcp(_) | Self::CloudInit => {}
        }
    }
}

const WORDS: [&str; 4] = ["running", "agent", "tcp:PORT", "cloud-init"];

impl Written for Ready {
    const WANTED: &'static str = "a string";
    const PLURAL: &'static str = "strings";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let text = value.as_str().ok_or(Refusal::Type)?;
        match text {
            "running" => Ok(Self::Running),
            "agent" => Ok(Self::Agent),
            "cloud-init" => Ok(Self::CloudInit),
            _ => match text.strip_prefix("tcp:") {
                Some(port) => port_of(port).map(Self::Tcp).ok_or_else(|| Refusal::Value {
                    message: format!("`{}` is not a port: the range is 1 to 65535", shown(port)),
                    hint: Some("write for example `\"tcp:22\"`".into()),
                }),
                None => Err(Refusal::of_word(text, &WORDS)),
            },
        }
    }

    fn instead_of(_: &DeValue<'_>) -> Option<String> {
        Some(nearest::one_of(&WORDS))
    }
}

fn port_of(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}
