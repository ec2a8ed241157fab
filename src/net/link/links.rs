//! Queries and configures network interfaces by rtnetlink(7).

use super::error::Error;
use std::io;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridgePort, LinkUnspec,
    packet_core::Nla,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind,
        InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
};

use super::super::tap_spec::Tap;
use crate::value::IfName;

/// The attribute `IFLA_TUN_MULTI_QUEUE` (linux/if_link.h).
const MULTI_QUEUE: u16 = 7;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its driver's kind (`bridge`, `tun`, `dummy`, …); `None` for a physical one.
    pub kind: Option<String>,
    /// The alias (`ip link set … alias`).
    pub alias: Option<String>,
    /// The hardware address.
    pub address: Vec<u8>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// The administrative state; independent of the carrier.
    pub up: bool,
    /// The index of the bridge or bond of which it is a port.
    pub controller: Option<u32>,
    /// As a port of a bridge: isolated from other isolated ports.
    pub isolated: bool,
    /// A tap with several queues (`IFF_MULTI_QUEUE`).
    pub multi_queue: bool,
}

impl Link {
    /// Returns true for a bridge of the kernel.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// Describes the interface for a message.
    pub fn described(&self) -> String {
        match (&self.alias, self.kind.as_deref()) {
            (Some(alias), _) => format!("`{alias}`"),
            (None, Some("tun")) if self.multi_queue => "a tap with several queues".into(),
            (None, Some("tun")) => "a tap or tun of another program".into(),
            (None, Some(kind)) => format!("an interface of kind `{kind}`"),
            (None, None) => "a physical interface".into(),
        }
    }

    fn read(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            alias: None,
            address: Vec::new(),
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            controller: None,
            isolated: false,
            multi_queue: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Address(address) => link.address = address,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(0) => {}
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(info) => info.into_iter().for_each(|info| link.tells(info)),
                _ => {}
            }
        }
        link
    }

    fn tells(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Tun(all)) => {
                self.multi_queue = all.iter().any(|one| {
                    let mut value = vec![0; one.value_len()];
                    one.emit_value(&mut value);
                    one.kind() == MULTI_QUEUE && value == [1]
                });
            }
            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                self.isolated = port.contains(&InfoBridgePort::Isolated(true));
            }
            _ => {}
        }
    }
}

/// The properties of the bridge to which a tap was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The bridge's MTU in bytes; larger frames are dropped.
    pub bridge_mtu: u32,
    /// The bridge is up; otherwise no frame passes.
    pub bridge_up: bool,
}

/// Queries and changes over a netlink connection. Requires a runtime.
#[derive(Debug)]
pub struct Links {
    pub(super) handle: Handle,
}

impl Links {
    /// Uses the result of [`Network::connect`](super::network::Network::connect).
    ///
    /// # Errors
    /// The connection failed.
    pub fn open(connected: io::Result<Handle>) -> Result<Self, Error> {
        Ok(Self { handle: connected.map_err(Error::Socket)? })
    }

    /// Returns the interface with this name, if it exists.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub async fn find(&self, name: &IfName) -> Result<Option<Link>, Error> {
        let mut answer = Box::pin(self.handle.link().get().match_name(name.as_str()).execute());
        match answer.next().await.transpose().map_err(to_io) {
            Ok(Some(message)) => Ok(Some(Link::read(message))),
            Err(e) if e.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            asked => {
                // A missing interface is reported separately: the connection has ended.
                let source = asked.err().unwrap_or(io::ErrorKind::BrokenPipe.into());
                Err(Error::Ask { what: format!("the interface `{name}`"), source })
            }
        }
    }

    /// Returns true if an interface with this name exists.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub async fn exists(&self, name: &IfName) -> Result<bool, Error> {
        Ok(self.find(name).await?.is_some())
    }

    /// Returns all bridges, sorted by name.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub async fn bridges(&self) -> Result<Vec<Link>, Error> {
        let mut request = self.handle.link().get();
        // The kernel returns only this kind; old kernels return all interfaces.
        let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]);
        request.message_mut().attributes.push(kind);
        let all: Vec<LinkMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::Ask { what: "the bridges".into(), source: to_io(e) })?;
        let mut bridges: Vec<Link> =
            all.into_iter().map(Link::read).filter(Link::is_bridge).collect();
        bridges.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(bridges)
    }

    /// Makes a tap a port of its bridge: with the bridge's MTU, an alias, no IPv6 address, up. A
    /// tap that is already an active port of the bridge is unchanged, so that a tap configured by
    /// root works for an unprivileged user.
    ///
    /// The VM's `mtu` does not apply to the tap: the MTU of a bridge follows its smallest port
    /// (`br_mtu_auto_adjust`), so a smaller MTU would change the network of the host and of all
    /// other VMs.
    ///
    /// # Errors
    /// The bridge does not exist or is not a bridge, or the kernel refuses.
    pub async fn attach(&self, tap: &Tap) -> Result<Attached, Error> {
        self.join(tap, 0).await
    }

    /// [`attach`](Self::attach) for a tap that was a port before, with the MTU `before` in bytes. A
    /// re-created bridge has the default MTU until its other ports are back; the tap must not limit
    /// it to that.
    ///
    /// # Errors
    /// As for [`attach`](Self::attach).
    pub async fn reattach(&self, tap: &Tap, before: u32) -> Result<Attached, Error> {
        self.join(tap, before).await
    }

    async fn join(&self, tap: &Tap, at_least: u32) -> Result<Attached, Error> {
        let bridge = self.bridge_of(tap).await?;
        let failed =
            |source| Error::Attach { tap: tap.name.clone(), bridge: tap.bridge.clone(), source };
        let port = self.find(&tap.name).await?.ok_or_else(|| failed(Errno::ENODEV.into()))?;
        let attached = Attached { bridge_mtu: bridge.mtu, bridge_up: bridge.up };
        if port.controller == Some(bridge.index) && port.up {
            return self.isolate(&port, tap).await.map(|()| attached).map_err(failed);
        }
        self.set_up(&port, bridge.mtu.max(at_least), &tap.alias).await.map_err(failed)?;
        let join = LinkUnspec::new_with_index(port.index).controller(bridge.index);
        // Down until it is isolated, so that no frame of another isolated port reaches it.
        let join = if tap.isolated { join.down() } else { join.up() };
        let set = |message| self.handle.link().set(message).execute();
        set(join.build()).await.map_err(|e| failed(to_io(e)))?;
        if tap.isolated {
            let joined = Link { isolated: false, ..port };
            self.isolate(&joined, tap).await.map_err(failed)?;
            let up = LinkUnspec::new_with_index(joined.index).up().build();
            set(up).await.map_err(|e| failed(to_io(e)))?;
        }
        Ok(attached)
    }

    /// Sets the isolation of a port.
    async fn isolate(&self, port: &Link, tap: &Tap) -> io::Result<()> {
        if port.isolated == tap.isolated {
            return Ok(());
        }
        let message = LinkBridgePort::new(port.index).isolated(tap.isolated).build();
        match self.handle.link().set_port(message).execute().await.map_err(to_io) {
            // Root has configured it more strictly than requested.
            Err(error) if !tap.isolated && error.raw_os_error() == Some(Errno::EPERM as i32) => {
                Ok(())
            }
            done => done,
        }
    }

    /// Settings that must precede joining the bridge:
    /// - the MTU: a bridge without a configured MTU shrinks to that of its smallest port;
    /// - a hardware address that begins with fe: a bridge without a configured address takes the
    ///   lowest address of its ports, and a host whose address changes loses its connections
    ///   (libvirt does the same, virnetdevtap.c);
    /// - no IPv6 address, which the host would use to send to the guest: duplicate address
    ///   detection, MLD, router solicitations (systemd.network(5), `LinkLocalAddressing=`, also
    ///   disables it for bridge ports).
    async fn set_up(&self, port: &Link, mtu: u32, alias: &str) -> io::Result<()> {
        let mut address = port.address.clone();
        if let Some(first) = address.first_mut() {
            *first = 0xfe;
        }
        let plain = || {
            LinkUnspec::new_with_index(port.index).mtu(mtu).alias(alias).address(address.clone())
        };
        let no_address =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]);
        let message = plain().append_extra_attribute(no_address).build();
        match self.handle.link().set(message).execute().await.map_err(to_io) {
            // Without IPv6 in the kernel, or with an MTU below 1280, there is no address anyway.
            Err(e) if e.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                self.handle.link().set(plain().build()).execute().await.map_err(to_io)
            }
            done => done,
        }
    }

    async fn bridge_of(&self, tap: &Tap) -> Result<Link, Error> {
        let found = self.find(&tap.bridge).await?;
        if let Some(bridge) = found.as_ref().filter(|link| link.is_bridge()) {
            return Ok(bridge.clone());
        }
        // Only used in the hint, so errors are ignored.
        let bridges = self.bridges().await.unwrap_or_default();
        let bridges = bridges.into_iter().map(|link| link.name).collect();
        let bridge = tap.bridge.clone();
        Err(match found {
            None => Error::NoBridge { bridge, bridges },
            Some(other) => Error::NotABridge { bridge, kind: other.described(), bridges },
        })
    }
}

pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
