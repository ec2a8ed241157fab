//! The errors of querying and configuring interfaces.

use std::io;

use nix::errno::Errno;

use crate::value::{ErrorCode, Explain, IfName};

/// Why a query or a change failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The bridge does not exist.
    #[error("bridge `{bridge}` does not exist")]
    NoBridge {
        /// The configured bridge.
        bridge: IfName,
        /// The existing bridges.
        bridges: Vec<String>,
    },
    /// The interface exists but is not a bridge.
    #[error("`{bridge}` is not a bridge but {kind}")]
    NotABridge {
        /// The configured bridge.
        bridge: IfName,
        /// The type of the interface.
        kind: String,
        /// The existing bridges.
        bridges: Vec<String>,
    },
    /// The tap cannot be added to the bridge.
    #[error("cannot add tap `{tap}` to bridge `{bridge}`")]
    Attach {
        /// The tap.
        tap: IfName,
        /// The bridge.
        bridge: IfName,
        /// The cause.
        source: io::Error,
    },
    /// A query failed.
    #[error("cannot query {what}")]
    Ask {
        /// The object of the query.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoBridge { .. } => ErrorCode::BridgeMissing,
            Self::NotABridge { .. } => ErrorCode::NotABridge,
            Self::Attach { .. } => ErrorCode::BridgeRefused,
            Self::Socket(..) | Self::Ask { .. } => ErrorCode::NetworkFailed,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoBridge { bridge, bridges, .. } if bridges.is_empty() => Some(format!(
                "this host has no bridge; create it (`ip link add {bridge} up type bridge`), or \
                 remove `bridge` to use a user-mode network"
            )),
            Self::NoBridge { bridges, .. } | Self::NotABridge { bridges, .. }
                if !bridges.is_empty() =>
            {
                let names: Vec<_> = bridges.iter().map(|name| format!("`{name}`")).collect();
                Some(format!(
                    "create it, or set `bridge = …` to an existing bridge: {}",
                    names.join(", ")
                ))
            }
            Self::NoBridge { .. } | Self::NotABridge { .. } => {
                Some("create a bridge and set `bridge = …`; this host has none".into())
            }
            Self::Attach { source, tap, bridge } if denied(source) => Some(format!(
                "run as root or with CAP_NET_ADMIN, or configure the tap once with `ip link set \
                 {tap} master {bridge} up`"
            )),
            Self::Attach { .. } | Self::Socket(_) | Self::Ask { .. } => None,
        }
    }
}

fn denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EPERM as i32)
}
