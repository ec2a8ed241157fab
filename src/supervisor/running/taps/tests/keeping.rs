//! The keeper of taps: attaching them to their bridges, and its reports.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, mpsc, watch};

use super::{LIMIT, TEXT, controller, create, on_kernel, tap_of};
use crate::{
    net::{broker::Network, tap_spec::taps},
    spec::TapHeal,
    supervisor::{
        running::{
            event::{TapsReport, VmEvent},
            taps::{keeper::Keeper, wanted::WantedTaps},
        },
        tests::{
            netns::{interface, ip},
            vm,
        },
    },
    value::{Note, NoteCode},
};

const LOST: &str = "QVM_TAP_LOST";
const HEALED: &str = "QVM_TAP_HEALED";

fn wanted(text: &str, heal: TapHeal) -> WantedTaps {
    WantedTaps { heal, taps: taps(&vm(text)), ..WantedTaps::default() }
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
    on_kernel(module_path!(), "detached_tap_is_put_back", async {
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
        // The tap has the alias of its VM again.
        assert_eq!(interface("qvm-web").unwrap()["ifalias"], tap.alias);
    });
}

#[test]
fn repeated_detaching_is_healed_at_intervals() {
    on_kernel(module_path!(), "repeated_detaching_is_healed_at_intervals", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        // The tap was never on its bridge.
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
    on_kernel(module_path!(), "reported_tap_stays_off_its_bridge", async {
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
    on_kernel(module_path!(), "port_of_another_bridge_is_left_there", async {
        ip("link add br0 up type bridge");
        ip("link add br1 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br1 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        let report = scene.until_event(LOST).await;
        assert!(report.notes[0].text.contains("a port of something else"), "{:?}", report.notes);
        scene.assert_silent().await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br1"));
        // Without that bridge, the keeper attaches it again.
        ip("link set qvm-web nomaster");
        scene.until_event(HEALED).await;
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
    });
}

#[test]
fn missing_bridge_is_awaited() {
    on_kernel(module_path!(), "missing_bridge_is_awaited", async {
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        let report = scene.until_event(LOST).await;
        assert!(report.notes[0].text.contains("`br0` does not exist"), "{:?}", report.notes);
        // Another interface does not wake the keeper.
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
    on_kernel(module_path!(), "deleted_tap_is_reported_after_a_while", async {
        ip("link add br0 up type bridge");
        let qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        scene.assert_silent().await;
        let begun = Instant::now();
        drop(qemu);
        let report = scene.until_event(LOST).await;
        assert_eq!(report.events[0].1["reason"], "it was deleted");
        // The exit of QEMU, which also deletes its taps, is reported first.
        assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn unplugged_nic_loses_no_tap() {
    on_kernel(module_path!(), "unplugged_nic_loses_no_tap", async {
        ip("link add br0 up type bridge");
        let qemu = create(&tap_of(TEXT));
        ip("link set qvm-web master br0 up");
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Heal));
        scene.assert_silent().await;
        drop(qemu);
        scene.wanted.send(WantedTaps::default()).unwrap();
        scene.assert_silent().await;
        // A new NIC may have a tap of the same name.
        let _qemu = create(&tap_of(TEXT));
        scene.wanted.send(wanted(TEXT, TapHeal::Heal)).unwrap();
        scene.until_event(HEALED).await;
    });
}

#[test]
fn held_taps_are_not_examined() {
    on_kernel(module_path!(), "held_taps_are_not_examined", async {
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
    on_kernel(module_path!(), "change_of_machine_waits_for_examination", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let scene_wanted = wanted(TEXT, TapHeal::Heal);
        let mut scene = Scene::new(WantedTaps::default());
        let examining = scene.examining.clone();
        // The machine is being changed: the keeper must not see an incomplete state.
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
    on_kernel(module_path!(), "unwatched_taps_are_left_alone", async {
        ip("link add br0 type bridge");
        let _qemu = create(&tap_of(TEXT));
        let mut scene = Scene::new(wanted(TEXT, TapHeal::Off));
        // A bridge that is down is reported nevertheless, and polled until it is up.
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
    on_kernel(module_path!(), "bridge_that_is_down_is_noted", async {
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
        // The tap was never detached.
        assert_eq!(controller("qvm-web").as_deref(), Some("br0"));
    });
}

#[test]
fn unreachable_network_is_noted_and_tried_again() {
    on_kernel(module_path!(), "unreachable_network_is_noted_and_tried_again", async {
        ip("link add br0 up type bridge");
        let _qemu = create(&tap_of(TEXT));
        let dir = tempfile::tempdir().unwrap();
        let network = Network::lent(dir.path().join("no-broker"));
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
    on_kernel(module_path!(), "taps_are_filtered_once_addresses_are_known", async {
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
    on_kernel(module_path!(), "keeper_ends_with_its_vm", async {
        let (wanted, changes) = watch::channel(WantedTaps::default());
        let (sender, _reports) = mpsc::channel(1);
        let keeper = Keeper::new(Network::default(), changes, Arc::default(), sender);
        let keeper = tokio::spawn(keeper.keep());
        drop(wanted);
        tokio::time::timeout(LIMIT, keeper).await.unwrap().unwrap();
    });
}
