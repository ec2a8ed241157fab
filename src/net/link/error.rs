//! Why an interface is not as it should be.

use std::io;

use nix::errno::Errno;

use crate::value::{Explain, IfName};

/// Why the kernel did not do or tell it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The bridge is not there.
    #[error("bridge `{bridge}` does not exist")]
    NoBridge {
        /// What it should have become a port of.
        bridge: IfName,
        /// The bridges that there are.
        bridges: Vec<String>,
    },
    /// It is there, and something else.
    #[error("`{bridge}` is not a bridge but {kind}")]
    NotABridge {
        /// What it should have become a port of.
        bridge: IfName,
        /// What it is.
        kind: String,
        /// The bridges that there are.
        bridges: Vec<String>,
    },
    /// The kernel refused to set up the tap.
    #[error("the kernel refuses it the bridge `{bridge}`")]
    Attach {
        /// The tap.
        tap: IfName,
        /// The bridge.
        bridge: IfName,
        /// Why.
        source: io::Error,
    },
    /// The kernel did not answer a question.
    #[error("cannot ask the kernel for {what}")]
    Ask {
        /// What was asked for.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoBridge { bridge, bridges, .. } if bridges.is_empty() => Some(format!(
                "this host has no bridge; create it (`ip link add {bridge} up type bridge`), or leave \
                 `bridge` out for a user-mode network"
            )),
            Self::NoBridge { bridges, .. } | Self::NotABridge { bridges, .. }
                if !bridges.is_empty() =>
            {
                let names: Vec<_> = bridges.iter().map(|name| format!("`{name}`")).collect();
                Some(format!(
                    "create it, or name another with `bridge = …`: there is {}",
                    names.join(", ")
                ))
            }
            Self::NoBridge { .. } | Self::NotABridge { .. } => {
                Some("name a bridge with `bridge = …`; this host has none".into())
            }
            Self::Attach { source, tap, bridge } if denied(source) => Some(format!(
                "run as root, or with CAP_NET_ADMIN; or set it up once by \
                 `ip link set {tap} master {bridge} up`"
            )),
            Self::Attach { .. } | Self::Socket(_) | Self::Ask { .. } => None,
        }
    }
}

fn denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EPERM as i32)
}
