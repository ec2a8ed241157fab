//! Taps on bridges, in network namespaces.
#![allow(unsafe_code)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::lab::refusal::golden_error;
use crate::netns::{inside, interface, ip};
use qvm::{
    net::{
        broker::{self, Network},
        link::{self, Links},
        tap,
        tap_spec::Tap,
    },
    sandbox::spawn,
    spec::AntiSpoof,
    sys::pidfd::{Process, Signal},
    value::{ErrorCode, Explain},
};

fn planned(bridge: &str, mtu: Option<u16>) -> Tap {
    Tap {
        nic: "net".parse().unwrap(),
        name: "qvm-web".parse().unwrap(),
        bridge: bridge.parse().unwrap(),
        mtu,
        isolated: false,
        anti_spoof: AntiSpoof::Off,
        mac: None,
        ip: None,
        alias: "qvm:web:net".into(),
    }
}

fn with_links<T>(body: impl AsyncFnOnce(&Links) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { body(&Links::open(Network::default().connect().await).unwrap()).await })
}

#[test]
fn tap_follows_its_specification_and_descriptor() {
    inside(module_path!(), "tap_follows_its_specification_and_descriptor", || {
        ip("link add br0 mtu 1400 up type bridge");
        let plan = planned("br0", None);
        let fd = tap::open(&plan.name, broker::tun()).unwrap();
        with_links(async |links| {
            let began = Instant::now();
            let attached = links.attach(&plan).await.unwrap();
            eprintln!("attached in {:?}", began.elapsed());
            assert_eq!(attached, link::Attached { bridge_mtu: 1400, bridge_up: true });
            let seen = interface("qvm-web").unwrap();
            assert_eq!(seen["master"], "br0");
            assert_eq!(seen["mtu"], 1400);
            assert_eq!(seen["ifalias"], "qvm:web:net");
            assert!(seen["flags"].as_array().unwrap().iter().any(|f| f == "UP"), "{seen}");
            assert_eq!(seen["linkinfo"]["info_kind"], "tun");
            let data = &seen["linkinfo"]["info_data"];
            assert_eq!(data["type"], "tap");
            assert_eq!(data["pi"], false);
            assert_eq!(data["vnet_hdr"], true);
            assert_eq!(data["persist"], false);
            assert_eq!(seen["inet6_addr_gen_mode"], "none");
            assert_eq!(ip("-6 addr show dev qvm-web"), "", "the host's end has an address");

            let found = links.find(&plan.name).await.unwrap().unwrap();
            assert_eq!((found.mtu, found.up), (1400, true));
            assert_eq!(found.described(), "`qvm:web:net`");
            let bridge = links.find(&plan.bridge).await.unwrap().unwrap();
            assert_eq!(found.controller, Some(bridge.index));

            // Again, without a change; the MTU of the guest is not the tap's.
            links.attach(&plan).await.unwrap();
            links.attach(&planned("br0", Some(9000))).await.unwrap();
            assert_eq!(interface("qvm-web").unwrap()["mtu"], 1400);

            drop(fd);
            assert!(!links.exists(&plan.name).await.unwrap());
            assert_eq!(interface("qvm-web"), None);
        });
    });
}

#[test]
fn mtu_below_ipv6_minimum_is_set() {
    inside(module_path!(), "mtu_below_ipv6_minimum_is_set", || {
        ip("link add br0 mtu 600 type bridge");
        let plan = planned("br0", None);
        let _fd = tap::open(&plan.name, broker::tun()).unwrap();
        let attached = with_links(async |links| links.attach(&plan).await).unwrap();
        assert_eq!(attached, link::Attached { bridge_mtu: 600, bridge_up: false });
        let seen = interface("qvm-web").unwrap();
        assert_eq!((&seen["mtu"], &seen["master"]), (&600.into(), &"br0".into()));
        assert_eq!(seen["ifalias"], "qvm:web:net");
    });
}

/// The MTU of a bridge follows its smallest port unless it was set.
#[test]
fn bridge_keeps_its_mtu() {
    inside(module_path!(), "bridge_keeps_its_mtu", || {
        ip("link add eth0 mtu 9000 up type veth peer name eth1");
        ip("link add br0 up type bridge");
        ip("link set eth0 master br0");
        let mtu = |name: &str| interface(name).unwrap()["mtu"].clone();
        assert_eq!(mtu("br0"), 9000);
        let plan = planned("br0", Some(1400));
        let fd = tap::open(&plan.name, broker::tun()).unwrap();
        let attach = || with_links(async |links| links.attach(&plan).await).unwrap();
        assert_eq!(attach().bridge_mtu, 9000);
        assert_eq!((mtu("br0"), mtu("qvm-web")), (9000.into(), 9000.into()));
        // A bridge that was created again has the default until its other ports are attached.
        ip("link del br0");
        ip("link add br0 up type bridge");
        assert_eq!(mtu("br0"), 1500);
        with_links(async |links| links.reattach(&plan, 9000).await).unwrap();
        ip("link set eth0 master br0");
        assert_eq!((mtu("br0"), mtu("qvm-web")), (9000.into(), 9000.into()));
        // A bridge whose MTU has grown meanwhile is not limited by the earlier MTU of the tap.
        ip("link set qvm-web nomaster mtu 1400");
        with_links(async |links| links.reattach(&plan, 1400).await).unwrap();
        assert_eq!((mtu("br0"), mtu("qvm-web")), (9000.into(), 9000.into()));
        drop(fd);
        assert_eq!(mtu("br0"), 9000);
    });
}

#[test]
fn multi_queue_tap_is_recognized() {
    inside(module_path!(), "multi_queue_tap_is_recognized", || {
        ip("tuntap add qvm-web mode tap multi_queue");
        ip("tuntap add other mode tap");
        let error = tap::open(&"qvm-web".parse().unwrap(), broker::tun()).unwrap_err();
        assert!(error.taken().is_some());
        let (many, one) = with_links(async |links| {
            let find =
                async |name: &str| links.find(&name.parse().unwrap()).await.unwrap().unwrap();
            (find("qvm-web").await, find("other").await)
        });
        assert!(many.multi_queue && !one.multi_queue);
        let error = error.of_multi_queue();
        assert!(matches!(&error, tap::Error::MultiQueue { name } if name.as_str() == "qvm-web"));
        golden_error("net", "multi-queue-tap", &error, Path::new("/nowhere"));
    });
}

#[test]
fn bridge_keeps_its_mac_address() {
    inside(module_path!(), "bridge_keeps_its_mac_address", || {
        // Higher than nearly all indices that the kernel would assign to a tap.
        ip("link add eth0 address fc:ff:ff:ff:ff:fe up type veth peer name eth1");
        ip("link add br0 up type bridge");
        ip("link set eth0 master br0");
        let before = interface("br0").unwrap()["address"].clone();
        assert_eq!(before, "fc:ff:ff:ff:ff:fe");
        with_links(async |links| {
            let mut open = Vec::new();
            for n in 0..4 {
                let plan = Tap { name: format!("tap{n}").parse().unwrap(), ..planned("br0", None) };
                open.push(tap::open(&plan.name, broker::tun()).unwrap());
                links.attach(&plan).await.unwrap();
            }
            assert_eq!(interface("br0").unwrap()["address"], before);
        });
    });
}

#[test]
fn missing_bridge_error_lists_bridges() {
    inside(module_path!(), "missing_bridge_error_lists_bridges", || {
        let plan = planned("br9", None);
        let _fd = tap::open(&plan.name, broker::tun()).unwrap();
        let attach = || with_links(async |links| links.attach(&plan).await).unwrap_err();
        let error = attach();
        assert_eq!(error.code(), ErrorCode::BridgeMissing);
        golden_error("net", "no-bridge", &error, Path::new("/nowhere"));
        ip("link add vmbr1 type bridge");
        ip("link add br0 type bridge");
        ip("link add veth0 type veth peer name veth1");
        golden_error("net", "other-bridges", &attach(), Path::new("/nowhere"));
        assert_eq!(interface("qvm-web").unwrap()["master"], serde_json::Value::Null);
    });
}

#[test]
fn interface_that_is_no_bridge_is_named() {
    inside(module_path!(), "interface_that_is_no_bridge_is_named", || {
        ip("link add br0 type veth peer name veth1");
        let plan = planned("br0", None);
        let _fd = tap::open(&plan.name, broker::tun()).unwrap();
        let error = with_links(async |links| links.attach(&plan).await).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotABridge);
        golden_error("net", "veth-is-no-bridge", &error, Path::new("/nowhere"));
    });
}

#[test]
fn tap_in_use_is_refused_until_closed() {
    inside(module_path!(), "tap_in_use_is_refused_until_closed", || {
        ip("link add br0 up type bridge");
        let plan = planned("br0", None);
        let fd = tap::open(&plan.name, broker::tun()).unwrap();
        with_links(async |links| {
            links.attach(&plan).await.unwrap();
            let arguments = ["600".into()];
            // SAFETY: the closure does nothing.
            let pid =
                unsafe { spawn::spawn(Path::new("sleep"), &arguments, vec![(fd, 3)], || Ok(())) };
            let pid = pid.unwrap();
            let holder = Process::open(pid).unwrap();
            // This descriptor is closed by now; the holder's is open.
            let error = tap::open(&plan.name, broker::tun()).unwrap_err();
            let owner = links.find(error.taken().unwrap()).await.unwrap().unwrap().described();
            let error = error.of(owner);
            holder.signal(Signal::KILL).unwrap();
            tokio::time::timeout(Duration::from_secs(60), holder.wait()).await.unwrap();
            assert_eq!(error.code(), ErrorCode::TapInUse);
            golden_error("net", "name-of-a-tap-of-qvm", &error, Path::new("/nowhere"));
            assert_eq!(interface("qvm-web"), None);
        });
    });
}

#[test]
fn interface_that_is_no_tap_is_named() {
    inside(module_path!(), "interface_that_is_no_tap_is_named", || {
        ip("link add qvm-web type veth peer name veth1");
        let plan = planned("br0", None);
        let error = tap::open(&plan.name, broker::tun()).unwrap_err();
        let owner = with_links(async |links| {
            links.find(error.taken().unwrap()).await.unwrap().unwrap().described()
        });
        golden_error("net", "name-of-a-veth", &error.of(owner), Path::new("/nowhere"));
    });
}

#[test]
fn persistent_tap_is_used_and_kept() {
    inside(module_path!(), "persistent_tap_is_used_and_kept", || {
        ip("link add br0 up type bridge");
        ip("tuntap add qvm-web mode tap");
        ip("link set qvm-web master br0 up");
        let plan = planned("br0", None);
        let fd = tap::open(&plan.name, broker::tun()).unwrap();
        with_links(async |links| links.attach(&plan).await).unwrap();
        assert_eq!(interface("qvm-web").unwrap()["ifalias"], serde_json::Value::Null);
        drop(fd);
        assert_eq!(interface("qvm-web").unwrap()["master"], "br0");
    });
}

#[test]
fn missing_privilege_is_reported() {
    if std::env::var_os("QVM_TEST_NO_RIGHT").is_some() {
        let plan = planned("br0", None);
        let error = tap::open(&plan.name, broker::tun()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::TapDenied);
        assert!(error.hint().unwrap().contains("CAP_NET_ADMIN"));
        // A tap of root that is not on the bridge: found, but not moved.
        let taken = Tap { name: "tap-root".parse().unwrap(), ..plan };
        let error = with_links(async |links| links.attach(&taken).await).unwrap_err();
        assert_eq!(error.code(), ErrorCode::BridgeRefused);
        assert!(error.hint().unwrap().contains("`ip link set tap-root master br0 up`"));
        return;
    }
    inside(module_path!(), "missing_privilege_is_reported", || {
        ip("link add br0 up type bridge");
        ip("tuntap add tap-root mode tap");
        // In a directory that every user can reach, so that the binary is found.
        let dir = tempfile::tempdir().unwrap();
        let mut open = std::fs::metadata(dir.path()).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let binary = dir.path().join("network");
        crate::lab::copy_program(std::env::current_exe().unwrap(), &binary);
        // Root without the capability: the device opens, but the ioctl is refused. Another user may
        // not even open the device if it is root's; a user namespace has only root.
        let mut ways = vec!["--bounding-set=-net_admin"];
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if map.split_whitespace().eq(["0", "0", "4294967295"]) {
            ways.push("--reuid=65534 --regid=65534 --clear-groups");
        }
        for way in ways {
            let status = Command::new("setpriv")
                .args(way.split_whitespace())
                .arg(&binary)
                .args(["--exact", "net::network::missing_privilege_is_reported", "--nocapture"])
                .env("QVM_TEST_NO_RIGHT", "1")
                .status()
                .unwrap();
            assert!(status.success(), "{way}");
        }
    });
}
