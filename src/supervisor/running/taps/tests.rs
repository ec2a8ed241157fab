//! The taps of a running guest on bridges of the kernel, in a network namespace of the test.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, mpsc, watch};

use super::{keeper::Keeper, open, wanted::WantedTaps};
use crate::{
    net::{
        broker::{self, Network},
        link::Links,
        tap,
        tap_spec::{Tap, taps},
    },
    spec::TapHeal,
    supervisor::{
        running::event::{TapsReport, VmEvent},
        tests::{
            netns::{inside, interface, ip},
            vm,
        },
    },
    value::{Note, NoteCode},
};

/// How long the kernel or the keeper may take before a test fails.
const LIMIT: Duration = Duration::from_secs(60);
/// A VM with one NIC, without the filter, which has tests of its own.
const TEXT: &str = "[nic.net]\nbridge = \"br0\"\nantiSpoof = false\n";
const LOST: &str = "QVM_TAP_LOST";
const HEALED: &str = "QVM_TAP_HEALED";

/// Runs a test in a network namespace of its own, with a runtime.
fn on_kernel(name: &str, test: impl Future<Output = ()>) {
    inside(module_path!(), name, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
}

/// The tap of the VM file.
fn tap_of(text: &str) -> Tap {
    taps(&vm(text)).remove(0)
}

/// Creates the tap, which exists until it is dropped, as that of QEMU.
fn create(tap: &Tap) -> OwnedFd {
    tap::open(&tap.name, broker::tun()).unwrap()
}

fn wanted(text: &str, heal: TapHeal) -> WantedTaps {
    WantedTaps { heal, taps: taps(&vm(text)), ..WantedTaps::default() }
}

/// The name of the bridge that an interface is a port of.
fn controller(name: &str) -> Option<String> {
    interface(name)?["master"].as_str().map(str::to_owned)
}

/// Waits until an interface is a port of this bridge, or of none.
async fn until_on(name: &str, bridge: Option<&str>) {
    let begun = Instant::now();
    while controller(name).as_deref() != bridge {
        assert!(begun.elapsed() < LIMIT, "`{name}` is on {:?}", controller(name));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A keeper of taps, and its reports.
struct Scene {
    wanted: watch::Sender<WantedTaps>,
    examining: Arc<Mutex<()>>,
    reports: mpsc::Receiver<VmEvent>,
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Scene {
    fn new(wanted: WantedTaps) -> Self {
        Self::by(Network::default(), wanted)
    }

    fn by(network: Network, wanted: WantedTaps) -> Self {
        let (wanted, changes) = watch::channel(wanted);
        let (sender, reports) = mpsc::channel(64);
        let examining = Arc::new(Mutex::new(()));
        let keeper = Keeper::new(network, changes, examining.clone(), sender);
        Self { wanted, examining, reports, keeper: tokio::spawn(keeper.keep()) }
    }

    /// The next report.
    async fn report(&mut self) -> TapsReport {
        let report = tokio::time::timeout(LIMIT, self.reports.recv()).await;
        match report.expect("the keeper reports nothing").expect("the keeper has ended") {
            VmEvent::Taps(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a report with this event. Returns the report.
    async fn until_event(&mut self, name: &str) -> TapsReport {
        loop {
            let report = self.report().await;
            if report.events.iter().any(|(event, _)| *event == name) {
                return report;
            }
        }
    }

    /// Waits for notes that satisfy the condition.
    async fn until_notes(&mut self, is_done: impl Fn(&[Note]) -> bool) -> TapsReport {
        loop {
            let report = self.report().await;
            if is_done(&report.notes) {
                return report;
            }
        }
    }

    /// Asserts that nothing is reported for a while, although the keeper is idle or asleep.
    async fn assert_silent(&mut self) {
        let report = tokio::time::timeout(Duration::from_millis(300), self.reports.recv()).await;
        assert!(report.is_err(), "{report:?}");
    }
}

#[test]
fn detached_tap_is_put_back() {
    on_kernel("detached_tap_is_put_back", async {
        ip("link add br0 up type bridge");
        let tap = tap_of(TEXT);
        let _qemu = create(&tap);
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        scene.assert_silent().await;
        ip("link set qvm-web nomaster");
        let report = scene.until_event(HEALED).await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
        let lost = &report.events[0];
        assert_eq!((lost.0, &lost.1["reason"]), (LOST, &"it was taken off the bridge".into()));
        assert_eq!((&lost.1["tap"], &lost.1["bridge"]), (&"qvm-web".into(), &"br0".into()));
        assert_eq!(report.notes, Vec::<Note>::new());
        // It is not isolated, and has the alias of its VM again.
        assert_eq!(interface("qvm-web").unwrap()["ifalias"], tap.alias);
    });
}

#[test]
fn repeated_detaching_is_healed_at_intervals() {
    on_kernel("repeated_detaching_is_healed_at_intervals", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        // It was never on its bridge.
        scene.until_event(HEALED).await;
        let begun = Instant::now();
        for _ in 0..2 {
            ip("link set qvm-web nomaster");
            scene.until_event(HEALED).await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    });
}

#[test]
fn reported_tap_stays_off_its_bridge() {
    on_kernel("reported_tap_stays_off_its_bridge", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Report));
        let report = scene.until_event(LOST).await;
        let note = "the tap `qvm-web` is not on its bridge and has no network: \
             it was taken off the bridge";
        assert_eq!(report.notes.len(), 1);
        assert_eq!((report.notes[0].code, &*report.notes[0].text), (NoteCode::TapOffBridge, note));
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web"), None);
        // An operator puts it back.
        ip("link set qvm-web master br0");
        let report = scene.until_event(HEALED).await;
        assert_eq!(report.notes, Vec::<Note>::new());
    });
}

#[test]
fn port_of_another_bridge_is_left_there() {
    on_kernel("port_of_another_bridge_is_left_there", async {
        ip("link add br0 up type bridge");
        ip("link add br1 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br1 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        let report = scene.until_event(LOST).await;
        assert!(report.notes[0].text.contains("a port of something else"), "{:?}", report.notes);
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br1"));
        // Off that bridge it is the keeper's again.
        ip("link set qvm-web nomaster");
        scene.until_event(HEALED).await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
    });
}

#[test]
fn missing_bridge_is_awaited() {
    on_kernel("missing_bridge_is_awaited", async {
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        let report = scene.until_event(LOST).await;
        assert!(report.notes[0].text.contains("`br0` does not exist"), "{:?}", report.notes);
        // Another interface wakes nobody.
        ip("link add veth0 type veth peer name veth1");
        scene.assert_silent().await;
        ip("link add br0 up type bridge");
        scene.until_event(HEALED).await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
        // The bridge is deleted and created again, as by `systemctl restart` of a network.
        ip("link del br0");
        let report = scene.until_event(LOST).await;
        assert!(report.notes[0].text.contains("`br0` does not exist"), "{:?}", report.notes);
        ip("link add br0 up type bridge");
        scene.until_event(HEALED).await;
    });
}

#[test]
fn deleted_tap_is_reported_after_a_while() {
    on_kernel("deleted_tap_is_reported_after_a_while", async {
        ip("link add br0 up type bridge");
        let qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        scene.assert_silent().await;
        let begun = Instant::now();
        drop(qemu);
        let report = scene.until_event(LOST).await;
        assert_eq!(report.events[0].1["reason"], "it was deleted");
        // QEMU may have exited: that is learnt first.
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn unplugged_nic_loses_no_tap() {
    on_kernel("unplugged_nic_loses_no_tap", async {
        ip("link add br0 up type bridge");
        let qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        scene.assert_silent().await;
        drop(qemu);
        scene.wanted.send(WantedTaps::default()).unwrap();
        scene.assert_silent().await;
        // A new NIC with a tap of that name is another one.
        let _qemu = create(&tap_of(TEXT));
        scene.wanted.send(wanted(TEXT, TapHeal::Heal)).unwrap();
        scene.until_event(HEALED).await;
    });
}

#[test]
fn held_taps_are_not_examined() {
    on_kernel("held_taps_are_not_examined", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let held = WantedTaps { held: true, ..wanted(TEXT, TapHeal::Heal) };
        let mut scene = Scene::new(held);
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web"), None);
        scene.wanted.send(wanted(TEXT, TapHeal::Heal)).unwrap();
        scene.until_event(HEALED).await;
    });
}

#[test]
fn change_of_machine_waits_for_examination() {
    on_kernel("change_of_machine_waits_for_examination", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let scene_wanted = wanted(TEXT, TapHeal::Heal);
        let mut scene = Scene::new(WantedTaps::default());
        let examining = scene.examining.clone();
        // The machine is being changed: the keeper must not see half of it.
        let changing = examining.lock().await;
        scene.wanted.send(scene_wanted.clone()).unwrap();
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web"), None);
        scene.wanted.send(WantedTaps { held: true, ..scene_wanted.clone() }).unwrap();
        drop(changing);
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web"), None);
    });
}

#[test]
fn unwatched_taps_are_left_alone() {
    on_kernel("unwatched_taps_are_left_alone", async {
        ip("link add br0 type bridge");
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Off));
        // A bridge that passes nothing is reported all the same, and asked for until it does.
        let report = scene.report().await;
        assert_eq!(report.notes.len(), 1);
        assert!(report.notes[0].code == NoteCode::BridgeDown, "{:?}", report.notes);
        ip("link set br0 up");
        assert_eq!(scene.report().await.notes, Vec::<Note>::new());
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web"), None);
    });
}

#[test]
fn bridge_that_is_down_is_noted() {
    on_kernel("bridge_that_is_down_is_noted", async {
        ip("link add br0 up type bridge");
        let text = TEXT.to_owned() + "mtu = 9000\n";
        let _qemu = create(&tap_of(&text));
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(&text, TapHeal::Heal));
        let report = scene.until_notes(|notes| notes.len() == 1).await;
        assert!(report.notes[0].text.contains("exceeds MTU 1500"), "{:?}", report.notes);
        ip("link set br0 down");
        let report = scene.until_notes(|notes| notes.len() == 2).await;
        assert!(report.notes[0].code == NoteCode::BridgeDown, "{:?}", report.notes);
        ip("link set br0 up");
        scene.until_notes(|notes| notes.len() == 1).await;
        // The tap itself was never off.
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
    });
}

#[test]
fn unreachable_network_is_noted_and_tried_again() {
    on_kernel("unreachable_network_is_noted_and_tried_again", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let dir = tempfile::tempdir().unwrap();
        let network = Network::lent(dir.path().join("nobody"));
        let mut scene = Scene::by(network, wanted(TEXT, TapHeal::Heal));
        let report = scene.report().await;
        assert!(report.notes[0].code == NoteCode::TapsUnattended, "{:?}", report.notes);
        // The same reason is not reported again.
        scene.assert_silent().await;
        scene.wanted.send(WantedTaps::default()).unwrap();
        scene.until_notes(<[Note]>::is_empty).await;
    });
}

#[test]
fn taps_are_filtered_once_addresses_are_known() {
    on_kernel("taps_are_filtered_once_addresses_are_known", async {
        ip("link add br0 up type bridge");
        let text = "bridge = \"br0\"\n";
        let tap = tap_of(text);
        let _qemu = create(&tap);
        ip("link set qvm-web master br0 up");
        let filters = || {
            let tc = std::process::Command::new("tc")
                .args(["filter", "show", "dev", "qvm-web", "ingress"])
                .output();
            String::from_utf8(tc.unwrap().stdout).unwrap()
        };
        let mut scene = Scene::new(wanted(text, TapHeal::Heal));
        scene.assert_silent().await;
        assert!(!filters().contains("bpf"), "{}", filters());
        let macs: BTreeMap<_, _> = [(tap.nic.clone(), "52:54:00:00:00:01".parse().unwrap())].into();
        scene.wanted.send(WantedTaps { macs, ..wanted(text, TapHeal::Heal) }).unwrap();
        let begun = Instant::now();
        while !filters().contains("bpf") {
            assert!(begun.elapsed() < LIMIT, "{}", filters());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // `antiSpoof = false` of the VM file removes it.
        scene.wanted.send(wanted(TEXT, TapHeal::Heal)).unwrap();
        let begun = Instant::now();
        while filters().contains("bpf") {
            assert!(begun.elapsed() < LIMIT, "{}", filters());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn keeper_ends_with_its_vm() {
    on_kernel("keeper_ends_with_its_vm", async {
        let (wanted, changes) = watch::channel(WantedTaps::default());
        let (sender, _reports) = mpsc::channel(1);
        let keeper = Keeper::new(Network::default(), changes, Arc::default(), sender);
        let keeper = tokio::spawn(keeper.keep());
        drop(wanted);
        tokio::time::timeout(LIMIT, keeper).await.unwrap().unwrap();
    });
}

#[test]
fn opened_tap_is_filtered_and_on_its_bridge() {
    on_kernel("opened_tap_is_filtered_and_on_its_bridge", async {
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
    on_kernel("tap_of_an_exiting_qemu_is_awaited", async {
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
    on_kernel("foreign_tap_and_missing_bridge_are_refused", async {
        let vm = vm(TEXT);
        let tap = taps(&vm).remove(0);
        let (network, macs) = (Network::default(), BTreeMap::new());
        let error = open::open(&network, &vm, &tap, &macs).await.unwrap_err();
        assert!(matches!(error, open::Error::Link { .. }), "{error:?}");
        // Nothing is left of the tap.
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
    on_kernel("attached_tap_knows_its_bridge", async {
        ip("link add br0 type bridge");
        ip("link add br1 up type bridge");
        let tap = tap_of("[nic.net]\nbridge = \"br0\"\nmtu = 9000\n");
        let _qemu = create(&tap);
        let links = Links::open(Network::default().connect().await).unwrap();
        let notes = open::attach(&links, &tap, "web.toml:1").await.unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        // To another bridge it moves.
        let moved = Tap { bridge: "br1".parse().unwrap(), mtu: None, ..tap };
        assert_eq!(open::attach(&links, &moved, "web.toml:1").await.unwrap(), Vec::<Note>::new());
        until_on("qvm-web", Some("br1")).await;
    });
}
