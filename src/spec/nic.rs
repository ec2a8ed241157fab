//! `[nic.NAME]`, and the flat keys `mac`, `ip`, `gateway`, `dns` and `bridge` for the NIC `net`.

use std::net::IpAddr;

use super::{
    choice::{LinkState, Model},
    reading::{At, Key, Reading},
    table::Table,
    written::Whole,
};
use crate::value::{Cidr, Forward, IfName, Label, MacAddr, VmName};

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// `net`, or the name of the table.
    pub name: Label,
    /// `mac`: `None` is a stable one of qvm's choice.
    pub mac: Option<MacAddr>,
    /// `ip`: given to the guest by cloud-init; `None` is DHCP.
    pub ip: Option<Cidr>,
    /// `gateway`: within the net of `ip`.
    pub gateway: Option<IpAddr>,
    /// `dns`: the name servers, given to the guest by cloud-init.
    pub dns: Vec<IpAddr>,
    /// `mtu`: 576 to 65535 bytes; `None` is the bridge's own.
    pub mtu: Option<u16>,
    /// `model`: what the guest sees.
    pub model: Model,
    /// `link`: whether the guest sees a cable plugged in.
    pub state: LinkState,
    /// `antiSpoof`: whether what the guest sends is filtered by its addresses, behind a bridge.
    pub anti_spoof: AntiSpoof,
    /// `isolated`: it neither hears nor reaches other isolated ports of its bridge.
    pub isolated: bool,
    /// What the other end is.
    pub link: Link,
}

/// What a NIC is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// `bridge`: by a tap device on this bridge of the host's.
    Bridge {
        /// The bridge.
        bridge: IfName,
        /// `tap`: the tap's name; otherwise `qvm-VM` for the NIC `net`, `qvm-VM_NIC` for others.
        tap: IfName,
    },
    /// QEMU's user-mode network: outgoing connections and these ports, without privileges.
    User {
        /// `forward`: ports of the host that lead into the guest.
        forward: Vec<Forward>,
    },
}

/// Whether the frames that a guest sends are filtered by their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AntiSpoof {
    /// `false`: it may send what it likes.
    Off,
    /// Nothing is written: they are, unless the host cannot.
    #[default]
    WherePossible,
    /// `true`: they are, or the guest does not run.
    Required,
}

/// The keys of a NIC, as they were written.
pub(super) struct NicKeys {
    /// The table's header; `None` where there are only flat keys.
    at: Option<At>,
    mac: Key<MacAddr>,
    ip: Key<Cidr>,
    gateway: Key<IpAddr>,
    dns: Key<Vec<(At, IpAddr)>>,
    bridge: Key<IfName>,
    forward: Key<Vec<(At, Forward)>>,
    anti_spoof: Key<bool>,
    isolated: Key<bool>,
    mtu: Key<Whole<576, 65535>>,
    model: Key<Model>,
    state: Key<LinkState>,
    tap: Key<IfName>,
}

impl NicKeys {
    /// Takes the flat keys, which are of the NIC `net`, from the top of the file.
    pub(super) fn take_flat(r: &mut Reading<'_>, top: &mut Table<'_>) -> Self {
        Self {
            at: None,
            mac: top.take(r, "mac"),
            ip: top.take(r, "ip"),
            gateway: top.take(r, "gateway"),
            dns: top.take_list(r, "dns"),
            bridge: top.take(r, "bridge"),
            forward: top.take_list(r, "forward"),
            anti_spoof: top.take(r, "antiSpoof"),
            isolated: Key::ABSENT,
            mtu: Key::ABSENT,
            model: Key::ABSENT,
            state: Key::ABSENT,
            tap: Key::ABSENT,
        }
    }

    /// Takes `[nic.NAME]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>) -> Self {
        let mut keys = Self::take_flat(r, &mut table);
        keys.isolated = table.take(r, "isolated");
        keys.mtu = table.take(r, "mtu");
        keys.model = table.take(r, "model");
        keys.state = table.take(r, "link");
        keys.tap = table.take(r, "tap");
        keys.at = Some(table.at.clone());
        table.finish(r);
        keys
    }

    /// The NIC `net`: what the flat keys and its own table, if there is one, say together.
    pub(super) fn net(r: &mut Reading<'_>, flat: Self, named: Option<Self>) -> Self {
        let Some(named) = named else {
            return flat;
        };
        Self {
            mac: r.either(flat.mac, named.mac),
            ip: r.either(flat.ip, named.ip),
            gateway: r.either(flat.gateway, named.gateway),
            dns: r.either(flat.dns, named.dns),
            bridge: r.either(flat.bridge, named.bridge),
            forward: r.either(flat.forward, named.forward),
            anti_spoof: r.either(flat.anti_spoof, named.anti_spoof),
            ..named
        }
    }

    /// The table's header, if it has a table.
    pub(super) fn header(&self) -> Option<&At> {
        self.at.as_ref()
    }

    /// The first of these keys that was written.
    pub(super) fn first(&self) -> Option<&At> {
        let Self { at: _, mac, ip, gateway, dns, bridge, forward, .. } = self;
        let Self { anti_spoof, isolated, mtu, model, state, tap, .. } = self;
        [
            &mac.at,
            &ip.at,
            &gateway.at,
            &dns.at,
            &bridge.at,
            &forward.at,
            &anti_spoof.at,
            &isolated.at,
            &mtu.at,
            &model.at,
            &state.at,
            &tap.at,
        ]
        .into_iter()
        .flatten()
        .min_by_key(|at| at.span.start)
    }

    /// The NIC, with every rule that its keys have among each other.
    pub(super) fn build(&self, r: &mut Reading<'_>, vm: &VmName, name: Label) -> Nic {
        self.check_addresses(r);
        self.check_forwards(r);
        let link = self.link(r, vm, &name);
        Nic {
            mac: self.mac.value,
            ip: self.ip.value,
            gateway: self.gateway.value,
            dns: self.dns.value.iter().flatten().map(|(_, address)| *address).collect(),
            mtu: self.mtu.value.as_ref().and_then(|Whole(mtu)| u16::try_from(*mtu).ok()),
            model: self.model.value.unwrap_or_default(),
            state: self.state.value.unwrap_or_default(),
            anti_spoof: match self.anti_spoof.value {
                None => AntiSpoof::WherePossible,
                Some(true) => AntiSpoof::Required,
                Some(false) => AntiSpoof::Off,
            },
            isolated: self.isolated.value.unwrap_or_default(),
            link,
            name,
        }
    }

    /// Refuses what two NICs of a VM cannot both have.
    pub(super) fn check_beside(&self, r: &mut Reading<'_>, nic: &Nic, theirs: &Self, other: &Nic) {
        let name = &other.name;
        if let Some((at, mac)) = self.mac.good().filter(|(_, mac)| Some(**mac) == other.mac) {
            r.refuse(at, format!("`{mac}` is the address of the NIC `{name}` already"), None);
        }
        if let (Some((at, ip)), Some(their)) = (self.ip.good(), other.ip)
            && ip.address() == their.address()
        {
            let ip = ip.address();
            r.refuse(at, format!("`{ip}` is the address of the NIC `{name}` already"), None);
        }
        if let (Link::Bridge { tap, .. }, Link::Bridge { tap: their, .. }) =
            (&nic.link, &other.link)
            && tap == their
        {
            let at = self.tap.at.as_ref().or(theirs.tap.at.as_ref());
            let message = format!("`{tap}` is the tap of the NIC `{name}` already");
            if let Some(at) = at.or(self.bridge.at.as_ref()) {
                r.refuse(at, message, None);
            }
        }
        if let (Some((at, gateway)), Some(their)) = (self.gateway.good(), other.gateway)
            && gateway.is_ipv4() == their.is_ipv4()
        {
            let hint = "a guest has one default route; leave all but one `gateway` out";
            let message = format!("the NIC `{name}` has a gateway already");
            r.refuse(at, message, Some(hint.into()));
        }
        for (at, forward) in self.forward.value.iter().flatten() {
            let mut others = theirs.forward.value.iter().flatten();
            if let Some((_, their)) = others.find(|(_, their)| clash(forward, their)) {
                let message =
                    format!("`{forward}` listens where `{their}` of the NIC `{name}` does");
                r.refuse(at, message, None);
            }
        }
    }

    fn check_addresses(&self, r: &mut Reading<'_>) {
        if let Some((at, ip)) = self.ip.good() {
            if let Some(what) = reserved(*ip) {
                r.refuse(
                    at,
                    format!("`{ip}` is the {what} of its net, and no machine can have it"),
                    None,
                );
            }
            if let (Some((at, Whole(..1280))), true) = (self.mtu.good(), ip.address().is_ipv6()) {
                // RFC 8200, 5: every link of IPv6 carries 1280 bytes.
                r.refuse(at, "it is less than the 1280 bytes that IPv6 needs", None);
            }
        }
        let Some((at, gateway)) = self.gateway.good() else {
            return;
        };
        match (&self.ip.at, &self.ip.value) {
            (None, _) => {
                let hint = "write `ip` too, or leave `gateway` out: DHCP brings its own";
                r.refuse(at, "a gateway needs a static address beside it", Some(hint.into()));
            }
            (Some(_), Some(ip)) if ip.address().is_ipv4() != gateway.is_ipv4() => {
                let family = |v4| if v4 { "IPv4" } else { "IPv6" };
                let (gateway, own) = (family(gateway.is_ipv4()), family(ip.address().is_ipv4()));
                r.refuse(at, format!("the gateway is {gateway}, and `ip` is {own}"), None);
            }
            (Some(_), Some(ip)) if ip.address() == *gateway => {
                r.refuse(at, format!("`{gateway}` is the guest's own address"), None);
            }
            (Some(_), Some(ip)) if !ip.contains(*gateway) => {
                let hint = "correct the address, or the prefix length of `ip`";
                r.refuse(at, format!("`{gateway}` is not in the net of `{ip}`"), Some(hint.into()));
            }
            (Some(_), _) => {}
        }
    }

    /// No two forwards may listen on the same port.
    fn check_forwards(&self, r: &mut Reading<'_>) {
        let forwards = self.forward.value.as_deref().unwrap_or_default();
        for (nr, (at, forward)) in forwards.iter().enumerate() {
            if let Some((_, other)) = forwards.iter().take(nr).find(|(_, f)| clash(f, forward)) {
                r.refuse(at, format!("`{forward}` listens where `{other}` does"), None);
            }
        }
    }

    fn link(&self, r: &mut Reading<'_>, vm: &VmName, name: &Label) -> Link {
        let forward = self.forward.value.as_deref().unwrap_or_default();
        let Some(bridge_at) = &self.bridge.at else {
            let hint = Some("write `bridge = …` too".to_owned());
            if let Some((at, true)) = self.anti_spoof.good().map(|(at, on)| (at, *on)) {
                let message = "a user-mode network sends nothing but what QEMU itself makes of it: there is nothing to filter";
                r.refuse(at, message, Some("leave it out".into()));
            }
            if let Some((at, true)) = self.isolated.good().map(|(at, on)| (at, *on)) {
                let message = "a user-mode network has no other guests in it to be isolated from";
                r.refuse(at, message, Some("leave it out".into()));
            }
            if let Some(at) = &self.tap.at {
                r.refuse(at, "a tap needs a bridge that it is attached to", hint.clone());
            }
            if let Some(at) = &self.mtu.at {
                r.refuse(at, "it can be set on a bridge's tap only", hint);
            }
            return Link::User { forward: forward.iter().map(|(_, forward)| *forward).collect() };
        };
        if let Some(at) = &self.forward.at {
            let hint = "leave `forward` out: on a bridge, the guest has an address of its own";
            let message = "ports are forwarded in user-mode networks only, and there is a `bridge`";
            r.refuse(at, message, Some(hint.into()));
        }
        let derived = match name.as_str() {
            Label::NET => format!("qvm-{vm}"),
            nic => format!("qvm-{vm}_{nic}"),
        };
        let tap = match (&self.tap.at, &self.tap.value) {
            (Some(_), tap) => tap.clone(),
            (None, _) => derived.parse().ok(),
        };
        if tap.is_none() && self.tap.at.is_none() {
            let message = format!(
                "the tap would be called `{derived}`: {} bytes, and an interface's name has at most {}",
                derived.len(),
                IfName::MAX
            );
            let hint = format!("name it: write `tap = \"…\"` in `[nic.{name}]`");
            r.refuse(bridge_at, message, Some(hint));
        }
        match (&self.bridge.value, tap) {
            (Some(bridge), Some(tap)) if *bridge == tap => {
                let at = self.tap.at.as_ref().unwrap_or(bridge_at);
                r.refuse(at, format!("`{tap}` is both the bridge and the tap"), None);
                Link::User { forward: Vec::new() }
            }
            (Some(bridge), Some(tap)) => Link::Bridge { bridge: bridge.clone(), tap },
            // Taken down as a problem: this NIC is never seen.
            (_, _) => Link::User { forward: Vec::new() },
        }
    }
}

/// What an IPv4 address is, if it is none that a machine can have: RFC 3021 knows no such ones for /31.
fn reserved(ip: Cidr) -> Option<&'static str> {
    let IpAddr::V4(address) = ip.address() else {
        return None;
    };
    let host = u32::MAX.checked_shr(u32::from(ip.prefix())).unwrap_or_default();
    match address.to_bits() & host {
        _ if ip.prefix() >= 31 => None,
        0 => Some("network address"),
        all if all == host => Some("broadcast address"),
        _ => None,
    }
}

/// Whether two forwards want the same port of the host; `0.0.0.0` is every address.
pub(super) fn clash(one: &Forward, other: &Forward) -> bool {
    let (a, b) = (one.host, other.host);
    one.protocol == other.protocol
        && a.port() == b.port()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
