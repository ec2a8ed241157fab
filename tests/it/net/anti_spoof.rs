//! The anti-spoofing filter of a tap, in the kernel: frames are written into the tap like QEMU's,
//! and received behind the bridge or not.

use std::{fs::File, io::Write, process::Command};

use crate::netns::{inside, interface, ip};
use crate::wire::{EVERYBODY, Ear, Mac, arp, ethernet, ipv4, ipv6, neighbour, tagged, udp, v4};
use qvm::{
    net::{
        anti_spoof::{filters::Filters, program},
        broker::{self, Network},
        link::Links,
        tap,
        tap_spec::Tap,
    },
    spec::AntiSpoof,
};

const OWN: Mac = [0x52, 0x54, 0, 0x61, 0x90, 0x15];
const FOREIGN: Mac = [0x52, 0x54, 0, 0x61, 0x90, 0x16];
/// The link-local address derived from `OWN`.
const LINK_LOCAL: &str = "fe80::5054:ff:fe61:9015";

/// A tap on a bridge, and a receiver at the end of a veth pair in the same bridge.
struct Wire {
    tap: File,
    ear: Ear,
    count: u32,
}

impl Wire {
    fn new() -> Self {
        // These frames are not tested: a firewall of the host may drop invalid packets too.
        for sysctl in ["iptables", "ip6tables", "arptables"] {
            let sysctl = format!("/proc/sys/net/bridge/bridge-nf-call-{sysctl}");
            if std::path::Path::new(&sysctl).exists() {
                std::fs::write(sysctl, "0").unwrap();
            }
        }
        ip("link add br0 up type bridge mcast_snooping 0");
        ip("link add port0 up type veth peer name ear0");
        ip("link set port0 master br0");
        ip("link set ear0 up");
        let tap = tap::open(&"qvm-web".parse().unwrap(), broker::tun()).unwrap();
        ip("link set qvm-web master br0 up");
        // A port forwards after the kernel has detected its carrier.
        let begun = std::time::Instant::now();
        while forwarding() != 2 {
            assert!(begun.elapsed().as_secs() < 60, "the ports do not forward");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self { tap: tap.into(), ear: Ear::new("ear0"), count: 0 }
    }

    /// Like QEMU: ten bytes of the virtio-net header before the frame.
    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.tap.write_all(&[&[0; 10], frame].concat())
    }

    /// Whether a frame passes; a later frame that always passes ends the wait.
    fn passes(&mut self, frame: &[u8]) -> bool {
        self.count += 1;
        let last = ipv4(v4("10.0.0.5"), v4("10.0.0.9"), 253, &self.count.to_be_bytes());
        let last = ethernet(EVERYBODY, OWN, 0x0800, &last);
        self.send(frame).unwrap();
        self.send(&last).unwrap();
        let seen = self.ear.until(|frame| frame == last);
        let bare = match frame.get(12..14) {
            Some([0x81, 0] | [0x88, 0xa8]) => [&frame[..12], &frame[16..]].concat(),
            _ => frame.to_vec(),
        };
        seen.contains(&bare)
    }
}

/// The number of forwarding bridge ports.
fn forwarding() -> usize {
    ip("-d link show").matches("state forwarding").count()
}

fn with_filters<T>(body: impl AsyncFnOnce(&Filters) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { body(&Filters::open(Network::default().connect().await).unwrap()).await })
}

/// Applies the filter of a NIC with this address.
fn set(address: Option<&str>) {
    let program = program(mac(), address.map(|ip| ip.parse().unwrap()));
    let tap = "qvm-web".parse().unwrap();
    with_filters(async |filters| filters.set(&tap, &program).await).unwrap();
}

fn mac() -> qvm::value::MacAddr {
    "52:54:00:61:90:15".parse().unwrap()
}

fn filters() -> String {
    let output = Command::new("tc").args("filter show dev qvm-web ingress".split(' ')).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// The name of each frame, the frame, and whether it passes.
type Cases = Vec<(&'static str, Vec<u8>, bool)>;

fn judge(wire: &mut Wire, cases: &Cases) {
    let wrong: Vec<String> = cases
        .iter()
        .filter(|(_, frame, passes)| wire.passes(frame) != *passes)
        .map(|(name, _, passes)| {
            format!("{name}: {}", if *passes { "was dropped" } else { "passed" })
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A frame of the guest.
fn own(protocol: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(EVERYBODY, OWN, protocol, payload)
}

fn foreign(protocol: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(EVERYBODY, FOREIGN, protocol, payload)
}

fn of_mac() -> Cases {
    let ping = ipv4(v4("10.0.0.5"), v4("10.0.0.1"), 1, &[8; 16]);
    let (gateway, guest) = (v4("10.0.0.1"), v4("10.0.0.5"));
    vec![
        ("own MAC", own(0x0800, &ping), true),
        ("foreign MAC", foreign(0x0800, &ping), false),
        (
            "one bit of the MAC",
            ethernet(EVERYBODY, [0x52, 0x54, 0, 0x61, 0x90, 0x14], 0x0800, &ping),
            false,
        ),
        (
            "first byte of the MAC",
            ethernet(EVERYBODY, [0x56, 0x54, 0, 0x61, 0x90, 0x15], 0x0800, &ping),
            false,
        ),
        (
            "group bit of the MAC",
            ethernet(EVERYBODY, [0x53, 0x54, 0, 0x61, 0x90, 0x15], 0x0800, &ping),
            false,
        ),
        ("foreign MAC, tagged", tagged(&foreign(0x0800, &ping), 0x8100, 5), false),
        ("foreign MAC, tagged by 802.1ad", tagged(&foreign(0x0800, &ping), 0x88a8, 5), false),
        (
            "foreign MAC, tagged twice",
            tagged(&tagged(&foreign(0x0800, &ping), 0x8100, 5), 0x88a8, 6),
            false,
        ),
        ("own MAC, tagged", tagged(&own(0x0800, &ping), 0x8100, 5), true),
        ("foreign MAC of any protocol", foreign(0x88b5, &[1; 50]), false),
        ("ARP of the own MAC", own(0x0806, &arp(1, (OWN, guest), ([0; 6], gateway))), true),
        (
            "ARP with a foreign sender",
            own(0x0806, &arp(2, (FOREIGN, gateway), (EVERYBODY, guest))),
            false,
        ),
        ("RARP of the own MAC", own(0x8035, &arp(3, (OWN, [0; 4]), (OWN, [0; 4]))), true),
        (
            "RARP of a foreign MAC",
            own(0x8035, &arp(3, (FOREIGN, [0; 4]), (FOREIGN, [0; 4]))),
            false,
        ),
        ("ARP cut short", own(0x0806, &arp(1, (OWN, guest), ([0; 6], gateway))[..27]), false),
        (
            "ARP of another hardware",
            own(0x0806, &[&[0, 6][..], &arp(1, (OWN, guest), (OWN, guest))[2..]].concat()),
            false,
        ),
        ("ARP of longer addresses", own(0x0806, &[&[0, 1, 8, 0, 8][..], &[6; 40]].concat()), false),
    ]
}

#[test]
fn filter_without_address_checks_the_mac() {
    inside(module_path!(), "filter_without_address_checks_the_mac", || {
        let mut wire = Wire::new();
        set(None);
        judge(&mut wire, &of_mac());
        let gateway = arp(2, (OWN, v4("10.0.0.1")), (EVERYBODY, v4("10.0.0.1")));
        judge(
            &mut wire,
            &vec![
                (
                    "any address",
                    own(0x0800, &ipv4([192, 0, 2, 7], [10, 0, 0, 1], 1, &[8; 16])),
                    true,
                ),
                ("any protocol", own(0x88b5, &[1; 50]), true),
                ("any own ARP", own(0x0806, &gateway), true),
                ("two tags", tagged(&tagged(&own(0x0800, &[1; 40]), 0x8100, 5), 0x88a8, 6), true),
                ("no payload", own(0x88b5, &[]), true),
                ("802.3", own(0x0026, &[0x42; 38]), true),
            ],
        );
        for length in 0..14 {
            // Shorter than an Ethernet header: the driver refuses it.
            assert!(wire.send(&own(0x0800, &[])[..length]).is_err());
        }
    });
}

#[test]
fn filter_with_ipv4_address() {
    inside(module_path!(), "filter_with_ipv4_address", || {
        let mut wire = Wire::new();
        set(Some("10.0.0.5/24"));
        judge(&mut wire, &of_mac());
        let (guest, gateway, none) = (v4("10.0.0.5"), v4("10.0.0.1"), [0; 4]);
        let all = [255; 4];
        let discover = udp(68, 67, &[1; 240]);
        let fragment = |mut packet: Vec<u8>, bits: u16| {
            packet[6..8].copy_from_slice(&bits.to_be_bytes());
            packet
        };
        // Options between the header and the ports.
        let with_options = |udp: &[u8]| {
            let mut packet = ipv4(none, all, 17, &[&[1; 8][..], udp].concat());
            packet[0] = 0x47;
            packet
        };
        let cut = ipv4(guest, gateway, 1, &[])[..19].to_vec();
        judge(
            &mut wire,
            &vec![
                (
                    "a neighbour's address",
                    own(0x0800, &ipv4(v4("10.0.0.6"), gateway, 1, &[8; 16])),
                    false,
                ),
                ("the gateway's address", own(0x0800, &ipv4(gateway, guest, 1, &[8; 16])), false),
                (
                    "a foreign address, tagged",
                    tagged(&own(0x0800, &ipv4(gateway, guest, 1, &[8; 16])), 0x8100, 5),
                    false,
                ),
                (
                    "the own address, tagged twice",
                    tagged(
                        &tagged(&own(0x0800, &ipv4(guest, gateway, 1, &[8; 16])), 0x8100, 5),
                        0x88a8,
                        5,
                    ),
                    false,
                ),
                ("a header cut short", own(0x0800, &cut), false),
                (
                    "a later fragment",
                    own(0x0800, &fragment(ipv4(guest, gateway, 17, &[8; 16]), 0x2005)),
                    true,
                ),
                (
                    "a foreign later fragment",
                    own(0x0800, &fragment(ipv4(gateway, guest, 17, &[8; 16]), 0x2005)),
                    false,
                ),
                ("DHCP: discover", own(0x0800, &ipv4(none, all, 17, &discover)), true),
                ("DHCP: discover behind options", own(0x0800, &with_options(&discover)), true),
                ("DHCP: renewal", own(0x0800, &ipv4(guest, gateway, 17, &discover)), true),
                (
                    "no address, another port",
                    own(0x0800, &ipv4(none, all, 17, &udp(68, 68, &[1; 9]))),
                    false,
                ),
                (
                    "no address, from another port",
                    own(0x0800, &ipv4(none, all, 17, &udp(53, 67, &[1; 9]))),
                    false,
                ),
                ("no address, TCP", own(0x0800, &ipv4(none, all, 6, &discover)), false),
                (
                    "no address, in pieces",
                    own(0x0800, &fragment(ipv4(none, all, 17, &discover), 0x2000)),
                    false,
                ),
                (
                    "no address, ports cut off",
                    own(0x0800, &ipv4(none, all, 17, &discover[..3])),
                    false,
                ),
                ("ARP: who has", own(0x0806, &arp(1, (OWN, guest), ([0; 6], gateway))), true),
                ("ARP: is at", own(0x0806, &arp(2, (OWN, guest), (FOREIGN, gateway))), true),
                (
                    "ARP: gratuitous, its own",
                    own(0x0806, &arp(1, (OWN, guest), ([0; 6], guest))),
                    true,
                ),
                (
                    "ARP: gratuitous, the gateway's",
                    own(0x0806, &arp(2, (OWN, gateway), (EVERYBODY, gateway))),
                    false,
                ),
                (
                    "ARP: request as a neighbour",
                    own(0x0806, &arp(1, (OWN, v4("10.0.0.6")), ([0; 6], gateway))),
                    false,
                ),
                (
                    "ARP: request as the gateway, tagged",
                    tagged(&own(0x0806, &arp(1, (OWN, gateway), ([0; 6], guest))), 0x8100, 1),
                    false,
                ),
                (
                    "ARP: probe for its own",
                    own(0x0806, &arp(1, (OWN, none), ([0; 6], guest))),
                    true,
                ),
                (
                    "ARP: probe for another's",
                    own(0x0806, &arp(1, (OWN, none), ([0; 6], gateway))),
                    false,
                ),
                (
                    "IPv6 without an address",
                    own(
                        0x86dd,
                        &ipv6("2001:db8::7", "ff02::1", 58, &neighbour(136, "2001:db8::7")),
                    ),
                    true,
                ),
                ("another protocol", own(0x88b5, &[1; 50]), false),
                (
                    "IPv4 in SNAP",
                    own(
                        0x0032,
                        &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &ipv4(gateway, guest, 1, &[8; 16])]
                            .concat(),
                    ),
                    false,
                ),
                ("PPPoE", own(0x8864, &[1; 50]), false),
            ],
        );
    });
}

/// ICMPv6 behind extension headers of eight bytes each.
fn behind(headers: &[u8], payload: &[u8]) -> (u8, Vec<u8>) {
    let mut packet = vec![];
    for (nr, _) in headers.iter().enumerate() {
        packet.extend([*headers.get(nr + 1).unwrap_or(&58), 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend(payload);
    (*headers.first().unwrap_or(&58), packet)
}

#[test]
fn filter_with_ipv6_address() {
    inside(module_path!(), "filter_with_ipv6_address", || {
        let mut wire = Wire::new();
        let (guest, router, all) = ("2001:db8::5", "fe80::1", "ff02::1");
        set(Some("2001:db8::5/64"));
        judge(&mut wire, &of_mac());
        let from =
            |source: &str, next: u8, payload: &[u8]| own(0x86dd, &ipv6(source, all, next, payload));
        let chained = |headers: &[u8], payload: &[u8]| {
            let (next, payload) = behind(headers, payload);
            from(guest, next, &payload)
        };
        let (false_one, true_one) = (neighbour(136, router), neighbour(136, guest));
        let slaac = "2001:db8:7::5054:ff:fe61:9015";
        let long_options = {
            let mut options = vec![0; 8 + 8 * 255];
            options[..2].copy_from_slice(&[58, 255]);
            from(guest, 60, &options)
        };
        let past_the_end = from(guest, 60, &[58, 20, 0, 0, 0, 0, 0, 0]);
        let later_fragment =
            |payload: &[u8]| from(guest, 44, &[&[58, 0, 0, 8, 0, 0, 0, 1][..], payload].concat());
        judge(
            &mut wire,
            &vec![
                ("UDP", from(guest, 17, &udp(1, 2, &[1; 9])), true),
                ("a neighbour's address", from("2001:db8::6", 17, &udp(1, 2, &[1; 9])), false),
                (
                    "an address that begins alike",
                    from("2001:db8::1:5", 17, &udp(1, 2, &[1; 9])),
                    false,
                ),
                ("the router's link-local address", from(router, 58, &[134, 0, 0, 0]), false),
                ("its own link-local address", from(LINK_LOCAL, 17, &udp(546, 547, &[1; 9])), true),
                ("its own address by SLAAC", from(slaac, 17, &udp(1, 2, &[1; 9])), true),
                ("tagged", tagged(&from("2001:db8::6", 17, &udp(1, 2, &[1; 9])), 0x8100, 5), false),
                ("a header cut short", own(0x86dd, &ipv6(guest, all, 59, &[])[..39]), false),
                ("ND: it is at", from(guest, 58, &true_one), true),
                (
                    "ND: its link-local address is at",
                    from(guest, 58, &neighbour(136, LINK_LOCAL)),
                    true,
                ),
                ("ND: the router is at", from(guest, 58, &false_one), false),
                ("ND: the router is at, from no address", from("::", 58, &false_one), false),
                ("ND: cut short", from(guest, 58, &true_one[..23]), false),
                ("ND: who has", from(guest, 58, &neighbour(135, router)), true),
                ("ND: own DAD", from("::", 58, &neighbour(135, guest)), true),
                (
                    "ND: DAD of its link-local one",
                    from("::", 58, &neighbour(135, LINK_LOCAL)),
                    true,
                ),
                ("ND: DAD of another's", from("::", 58, &neighbour(135, router)), false),
                (
                    "router solicitation from no address",
                    from("::", 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
                    true,
                ),
                (
                    "MLD from no address",
                    own(
                        0x86dd,
                        &ipv6(
                            "::",
                            "ff02::16",
                            0,
                            &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143; 28]].concat(),
                        ),
                    ),
                    true,
                ),
                ("a ping behind options", chained(&[60], &[128; 16]), true),
                ("ND behind options: its own", chained(&[60], &true_one), true),
                ("ND behind options", chained(&[60], &false_one), false),
                ("ND behind hop-by-hop options", chained(&[0], &false_one), false),
                ("ND behind routing", chained(&[43], &false_one), false),
                ("ND behind three", chained(&[0, 60, 43], &false_one), false),
                ("ND behind four", chained(&[0, 60, 43, 60], &false_one), false),
                ("a ping behind four", chained(&[0, 60, 43, 60], &[128; 16]), true),
                ("ND behind more than are looked at", chained(&[60; 9], &false_one), false),
                ("ND in a separate fragment", chained(&[44], &false_one), false),
                ("ND in a fragment behind options", chained(&[60, 44, 60], &false_one), false),
                ("a ping in a fragment", chained(&[44], &[128; 16]), true),
                ("a later fragment", later_fragment(&false_one), true),
                ("options that end nowhere", past_the_end, false),
                ("options that leave nothing", long_options, false),
                ("a fragment's header cut short", from(guest, 44, &[58, 0, 0]), false),
                (
                    "IPv4 without an address",
                    own(0x0800, &ipv4([192, 0, 2, 7], [10, 0, 0, 1], 1, &[8; 16])),
                    true,
                ),
                ("another protocol", own(0x88b5, &[1; 50]), false),
            ],
        );
    });
}

#[test]
fn filter_is_replaced_and_removed() {
    inside(module_path!(), "filter_is_replaced_and_removed", || {
        let mut wire = Wire::new();
        let tap: qvm::value::IfName = "qvm-web".parse().unwrap();
        let stranger = foreign(0x0800, &[1; 40]);
        let neighbour = own(0x0800, &ipv4(v4("10.0.0.6"), v4("10.0.0.1"), 1, &[8; 16]));
        // There is no filter to remove, and no hook for one.
        with_filters(async |filters| filters.clear(&tap).await).unwrap();
        assert!(wire.passes(&stranger) && wire.passes(&neighbour));
        set(None);
        assert!(!wire.passes(&stranger) && wire.passes(&neighbour));
        let one = filters();
        set(Some("10.0.0.5/24"));
        assert!(!wire.passes(&stranger) && !wire.passes(&neighbour));
        set(None);
        assert_eq!(filters(), one, "it was not replaced");
        assert!(!wire.passes(&stranger) && wire.passes(&neighbour));
        // The filter stays while the tap has no bridge, and on another bridge.
        ip("link set qvm-web nomaster");
        ip("link set qvm-web master br0");
        assert!(!wire.passes(&stranger));
        with_filters(async |filters| {
            filters.clear(&tap).await.unwrap();
            filters.clear(&tap).await.unwrap();
        });
        assert_eq!(filters(), "");
        assert!(wire.passes(&stranger) && wire.passes(&neighbour));
        set(None);
        drop(wire);
        let gone = with_filters(async |filters| filters.set(&tap, &program(mac(), None)).await);
        assert_eq!(gone.unwrap_err().to_string(), "tap `qvm-web` does not exist");
        let _anew = tap::open(&tap, broker::tun()).unwrap();
        assert_eq!(filters(), "", "it has outlived its tap");
    });
}

#[test]
fn isolated_ports_cannot_reach_each_other() {
    inside(module_path!(), "isolated_ports_cannot_reach_each_other", || {
        let mut wire = Wire::new();
        let frame = |nr| own(0x88b5, &[nr; 60]);
        let plan = |isolated| Tap {
            nic: "net".parse().unwrap(),
            name: "qvm-web".parse().unwrap(),
            bridge: "br0".parse().unwrap(),
            mtu: None,
            isolated,
            anti_spoof: AntiSpoof::Off,
            mac: None,
            ip: None,
            alias: "qvm:web:net".into(),
        };
        let attach = |isolated| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let attach = async {
                Links::open(Network::default().connect().await)
                    .unwrap()
                    .attach(&plan(isolated))
                    .await
            };
            runtime.unwrap().block_on(attach).unwrap();
        };
        wire.send(&frame(1)).unwrap();
        wire.ear.until(|seen| seen == frame(1));
        attach(true);
        assert!(isolated("qvm-web"));
        // The other port is not isolated.
        wire.send(&frame(2)).unwrap();
        wire.ear.until(|seen| seen == frame(2));
        ip("link set port0 type bridge_slave isolated on");
        wire.send(&frame(3)).unwrap();
        attach(false);
        assert!(!isolated("qvm-web"));
        wire.send(&frame(4)).unwrap();
        let before = wire.ear.until(|seen| seen == frame(4));
        assert!(!before.contains(&frame(3)), "both are isolated, and one has heard the other");
    });
}

fn isolated(port: &str) -> bool {
    let seen = interface(port).unwrap();
    assert_eq!(seen["master"], "br0");
    seen["linkinfo"]["info_slave_data"]["isolated"] == true
}
