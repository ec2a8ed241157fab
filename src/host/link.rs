//! A tap's place in the host's network, by rtnetlink: port of a bridge, MTU, alias, up.

use std::io;

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkUnspec,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use crate::value::IfName;

/// ENODEV, as netlink says it.
const NO_SUCH_DEVICE: i32 = -19;

/// Why a tap is not on its bridge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// netlink cannot be had.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// There is no such bridge.
    #[error("bridge `{bridge}` does not exist")]
    NoBridge {
        /// Its name.
        bridge: IfName,
        /// Those there are.
        others: Vec<String>,
    },
    /// There is something else of that name.
    #[error("`{name}` is no bridge")]
    NotABridge {
        /// Its name.
        name: IfName,
    },
    /// The tap went away.
    #[error("the tap has gone")]
    NoTap,
    /// The kernel refuses.
    #[error("the kernel refuses")]
    Refused(#[source] rtnetlink::Error),
}

impl Error {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBridge { others, .. } if others.is_empty() => Some(
                "there is no bridge on this host: create it, or leave `bridge` out for the user-mode network".into(),
            ),
            Self::NoBridge { others, .. } => Some(format!(
                "create it, or name another with `bridge = …`; there are: {}",
                others.join(", ")
            )),
            Self::NotABridge { .. } => Some("`ip link show type bridge` lists the bridges".into()),
            Self::Socket(_) | Self::NoTap | Self::Refused(_) => None,
        }
    }
}

/// Makes `tap` a port of `bridge`, names its owner, and brings it up. `mtu` in bytes; `None` is the bridge's.
///
/// # Errors
/// The bridge is missing or no bridge, or the kernel refuses.
pub async fn attach(
    tap: &IfName,
    bridge: &IfName,
    mtu: Option<u16>,
    alias: &str,
) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let result = attach_by(&handle, tap, bridge, mtu, alias).await;
    connection.abort();
    result
}

async fn attach_by(
    handle: &Handle,
    tap: &IfName,
    bridge: &IfName,
    mtu: Option<u16>,
    alias: &str,
) -> Result<(), Error> {
    let Some(there) = find(handle, bridge).await? else {
        return Err(Error::NoBridge { bridge: bridge.clone(), others: bridges(handle).await });
    };
    if !is_bridge(&there) {
        return Err(Error::NotABridge { name: bridge.clone() });
    }
    let port = find(handle, tap).await?.ok_or(Error::NoTap)?.header.index;
    let own_mtu = there.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let mut change =
        LinkUnspec::new_with_index(port).controller(there.header.index).alias(alias).up();
    if let Some(mtu) = mtu.map(u32::from).or(own_mtu) {
        change = change.mtu(mtu);
    }
    handle.link().set(change.build()).execute().await.map_err(Error::Refused)
}

async fn find(handle: &Handle, name: &IfName) -> Result<Option<LinkMessage>, Error> {
    let mut links = handle.link().get().match_name(name.to_string()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == NO_SUCH_DEVICE => {
            Ok(None)
        }
        Err(error) => Err(Error::Refused(error)),
    }
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))))
    })
}

async fn bridges(handle: &Handle) -> Vec<String> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.unwrap_or_default();
    let name = |link: &LinkMessage| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
    };
    links.iter().filter(|link| is_bridge(link)).filter_map(name).collect()
}
