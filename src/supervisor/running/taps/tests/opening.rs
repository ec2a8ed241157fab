//! Taps that are opened for a start, and attached to a bridge.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{LIMIT, TEXT, controller, create, on_kernel, tap_of};
use crate::{
    net::{
        broker::Network,
        link::Links,
        tap_spec::{Tap, taps},
    },
    supervisor::{
        running::taps::open,
        tests::{
            netns::{interface, ip},
            vm,
        },
    },
    value::Note,
};

/// Waits until an interface is a port of this bridge, or of none.
async fn until_on(name: &str, bridge: Option<&str>) {
    let begun = Instant::now();
    while controller(name).as_deref() != bridge {
        assert!(begun.elapsed() < LIMIT, "`{name}` is on {:?}", controller(name));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn opened_tap_is_filtered_and_on_its_bridge() {
    on_kernel(module_path!(), "opened_tap_is_filtered_and_on_its_bridge", async {
        ip("link add br0 up type bridge");
        let vm = vm("[nic.net]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\nisolated = true\n");
        let tap = taps(&vm).remove(0);
        let macs = BTreeMap::new();
        let (fd, notes) = open::open(&Network::default(), &vm, &tap, &macs).await.unwrap();
        assert_eq!(notes, Vec::<Note>::new());
        let link = interface("qvm-web").unwrap();
        assert_eq!((&link["master"], &link["ifalias"]), (&"br0".into(), &"qvm:web:net".into()));
        assert_eq!(link["linkinfo"]["info_slave_data"]["isolated"], true);
        drop(fd);
        assert!(interface("qvm-web").is_none());
    });
}

#[test]
fn tap_of_an_exiting_qemu_is_awaited() {
    on_kernel(module_path!(), "tap_of_an_exiting_qemu_is_awaited", async {
        ip("link add br0 up type bridge");
        let vm = vm(TEXT);
        let tap = taps(&vm).remove(0);
        let earlier = create(&tap);
        ip(&format!("link set qvm-web alias {}", tap.alias));
        let (network, macs) = (Network::default(), BTreeMap::new());
        let next = open::open(&network, &vm, &tap, &macs);
        // The clock of the time limit stands still, so that a loaded machine does not exceed it.
        tokio::time::pause();
        let (next, ()) = tokio::join!(next, async {
            for _ in 0..200 {
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
            }
            drop(earlier);
            tokio::time::resume();
        });
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
        drop(next.unwrap());
    });
}

#[test]
fn foreign_tap_and_missing_bridge_are_refused() {
    on_kernel(module_path!(), "foreign_tap_and_missing_bridge_are_refused", async {
        let vm = vm(TEXT);
        let tap = taps(&vm).remove(0);
        let (network, macs) = (Network::default(), BTreeMap::new());
        let error = open::open(&network, &vm, &tap, &macs).await.unwrap_err();
        assert!(matches!(error, open::Error::Link { .. }), "{error:?}");
        // The tap is deleted.
        assert!(interface("qvm-web").is_none());
        ip("link add br0 up type bridge");
        let _other = create(&tap);
        ip("link set qvm-web alias backup");
        let begun = Instant::now();
        let error = open::open(&network, &vm, &tap, &macs).await.unwrap_err();
        assert!(matches!(error, open::Error::Tap { .. }), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "a foreign tap is not awaited");
        // A tap of the VM that stays is refused in the end.
        ip(&format!("link set qvm-web alias {}", tap.alias));
        let begun = Instant::now();
        let error = open::open(&network, &vm, &tap, &macs).await.unwrap_err();
        assert!(matches!(error, open::Error::Tap { .. }), "{error:?}");
        assert!(begun.elapsed() >= Duration::from_secs(2));
    });
}

#[test]
fn attached_tap_knows_its_bridge() {
    on_kernel(module_path!(), "attached_tap_knows_its_bridge", async {
        ip("link add br0 type bridge");
        ip("link add br1 up type bridge");
        let tap = tap_of("[nic.net]\nbridge = \"br0\"\nmtu = 9000\n");
        let _qemu = create(&tap);
        let links = Links::open(Network::default().connect().await).unwrap();
        let notes = open::attach(&links, &tap, "web.toml:1").await.unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        // The tap moves to another bridge.
        let moved = Tap { bridge: "br1".parse().unwrap(), mtu: None, ..tap };
        assert_eq!(open::attach(&links, &moved, "web.toml:1").await.unwrap(), Vec::<Note>::new());
        until_on("qvm-web", Some("br1")).await;
    });
}
