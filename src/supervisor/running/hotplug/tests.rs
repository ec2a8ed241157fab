//! Each change of a running machine, as the commands that a scripted QEMU gets.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::{
    spec::Nic,
    supervisor::tests::{Answer, FakeQemu, Host, qemu_program, vm},
};

/// No command that changes something.
const NONE: [&str; 0] = [];

/// A machine of the VM file, and its QEMU.
struct Scene {
    host: Host,
    fake: FakeQemu,
    machine: Machine,
}

impl Scene {
    async fn new(text: &str) -> Self {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let mut settings = host.ctx.settings().clone();
        settings.qemu = Some(qemu_program(host.dir.path(), "").into());
        let machine = Machine {
            settings,
            client: fake.qemu.client(),
            vm: vm(text),
            cancel: Cancel::default(),
            uid: None,
            shut_off: false,
        };
        let scene = Self { host, fake, machine };
        scene.set_devices(&[]);
        scene.on("query-fdsets", json!([]));
        scene
    }

    fn on(&self, command: &'static str, answer: Value) {
        self.fake.peer.script.on(command, Answer::Return(answer));
    }

    fn refuse(&self, command: &'static str, description: &'static str) {
        self.fake.peer.script.on(command, Answer::Refuse(description));
    }

    /// The devices that QEMU has from now on.
    fn set_devices(&self, ids: &[&str]) {
        let device = |id: &&str| json!({ "name": id, "type": "child<virtio-net-pci>" });
        self.on("qom-list", ids.iter().map(device).collect());
    }

    /// The commands that changed something, in their order.
    fn changes(&self) -> Vec<String> {
        let names = self.fake.peer.commands.names().into_iter();
        names.filter(|name| !name.starts_with("q")).collect()
    }

    fn arguments(&self, command: &str) -> Value {
        self.fake.peer.commands.arguments(command)
    }

    fn nic(&self, name: &str) -> Box<Nic> {
        let nic = self.machine.vm.nics.iter().find(|nic| nic.name.as_str() == name);
        Box::new(nic.unwrap().clone())
    }

    fn disk(&self, name: &str) -> Box<Disk> {
        let disk = self.machine.vm.disks.iter().find(|disk| disk.name.as_str() == name);
        Box::new(disk.unwrap().clone())
    }
}

fn label(name: &str) -> Label {
    name.parse().unwrap()
}

/// The VM file of a machine with a second disk, which is a file of the operator.
fn with_disk(dir: &Path) -> String {
    let file = dir.join("data.raw");
    std::fs::write(&file, vec![0; 4096]).unwrap();
    let root = dir.join("root.raw");
    format!(
        "[disk.root]\npath = \"{}\"\nformat = \"raw\"\n\
         [disk.data]\npath = \"{}\"\nformat = \"raw\"\n",
        root.display(),
        file.display()
    )
}

#[tokio::test]
async fn memory_is_the_target_of_the_balloon() {
    let scene = Scene::new("vcpu = 1\n").await;
    let size: Size = "512M".parse().unwrap();
    let done = scene.machine.apply(&LiveChange::SetMemory(size)).await.unwrap();
    assert_eq!(done, ChangeOutcome::Done);
    assert_eq!(scene.arguments("balloon"), json!({ "value": 512 << 20 }));
    scene.refuse("balloon", "no balloon");
    let refused = scene.machine.apply(&LiveChange::SetMemory(size)).await;
    assert!(matches!(refused, Err(Error::Monitor(_))), "{refused:?}");
}

#[tokio::test]
async fn disk_grows_and_never_shrinks() {
    let scene = Scene::new("vcpu = 1\n").await;
    let change = LiveChange::GrowDisk(label("root"), "2G".parse().unwrap());
    let node = |size: u64| json!([{ "node-name": "node-root", "image": { "virtual-size": size } }]);
    for size in [2 << 30, 3 << 30] {
        scene.on("query-named-block-nodes", node(size));
        scene.machine.apply(&change).await.unwrap();
        assert_eq!(scene.changes(), NONE, "from {size}");
    }
    for answer in [node(1 << 30), json!([])] {
        scene.on("query-named-block-nodes", answer);
        scene.machine.apply(&change).await.unwrap();
        let arguments = scene.arguments("block_resize");
        assert_eq!(arguments, json!({ "node-name": "node-root", "size": 2_u64 << 30 }));
    }
}

#[tokio::test]
async fn cable_is_that_of_the_nic() {
    let scene = Scene::new("vcpu = 1\n").await;
    for (state, up) in [(LinkState::Down, false), (LinkState::Up, true)] {
        scene.machine.apply(&LiveChange::SetLink(label("net"), state)).await.unwrap();
        assert_eq!(scene.arguments("set_link"), json!({ "name": "nic-net", "up": up }));
    }
}

#[tokio::test]
async fn nic_is_plugged_into_its_port() {
    let scene = Scene::new("[nic.net]\n[nic.lan]\nlink = \"down\"\n").await;
    let change = LiveChange::AddNic(scene.nic("lan"));
    assert_eq!(scene.machine.apply(&change).await.unwrap(), ChangeOutcome::Done);
    assert_eq!(scene.arguments("netdev_add"), json!({ "type": "user", "id": "net-lan" }));
    let device = scene.arguments("device_add");
    assert_eq!(
        (&device["driver"], &device["bus"]),
        (&"virtio-net-pci".into(), &"port-nic0".into())
    );
    assert_eq!(device["netdev"], "net-lan");
    // The address is that of the VM's identity, which was created for it.
    let identity = identity_store::read(scene.host.ctx.paths()).unwrap().unwrap();
    assert_eq!(device["mac"], identity.macs[&label("lan")].to_string());
    assert_eq!(scene.arguments("set_link"), json!({ "name": "nic-lan", "up": false }));
    let changes = scene.changes();
    assert_eq!(changes, ["netdev_del", "netdev_add", "device_add", "set_link"]);
}

#[tokio::test]
async fn occupied_port_is_not_used() {
    let scene = Scene::new("[nic.net]\n[nic.lan]\n").await;
    scene.set_devices(&["nic-other", "balloon"]);
    // The device on the port of `lan` is one that was plugged in before.
    scene.on("qom-get", json!("/machine/peripheral/port-nic0/port-nic0"));
    scene.machine.apply(&LiveChange::AddNic(scene.nic("lan"))).await.unwrap();
    assert_eq!(scene.arguments("device_add")["bus"], "port-nic1");
    assert_eq!(scene.arguments("qom-get")["path"], "/machine/peripheral/nic-other");
}

#[tokio::test]
async fn machine_without_free_port_refuses_a_nic() {
    let scene = Scene::new("[nic.net]\n[nic.lan]\n").await;
    let ids: Vec<String> = (0..NIC_PORTS).map(|nr| format!("nic-n{nr}")).collect();
    scene.set_devices(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    // Each device is on the port of its number.
    scene.fake.peer.script.on(
        "qom-get",
        Answer::Compute(|arguments| {
            let path = arguments["path"].as_str().unwrap();
            let port = device::nic_port(path.rsplit_once("nic-n").unwrap().1.parse().unwrap());
            json!(format!("/machine/peripheral/{port}/{port}"))
        }),
    );
    let refused = scene.machine.apply(&LiveChange::AddNic(scene.nic("lan"))).await;
    assert!(matches!(refused, Err(Error::NoPort(NIC_PORTS))), "{refused:?}");
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn present_device_is_not_added_again() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(&with_disk(dir.path())).await;
    scene.set_devices(&["nic-net", "disk-data"]);
    scene.machine.apply(&LiveChange::AddNic(scene.nic("net"))).await.unwrap();
    scene.machine.apply(&LiveChange::AddDisk(scene.disk("data"))).await.unwrap();
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn refused_nic_leaves_nothing() {
    let scene = Scene::new("[nic.net]\n[nic.lan]\n").await;
    scene.refuse("device_add", "no");
    let refused = scene.machine.apply(&LiveChange::AddNic(scene.nic("lan"))).await;
    assert!(matches!(refused, Err(Error::Monitor(_))), "{refused:?}");
    let changes = scene.changes();
    let after = ["device_add", "netdev_del", "closefd", "closefd"];
    assert_eq!(changes[changes.len() - 4..], after, "{changes:?}");
}

#[tokio::test]
async fn isolated_qemu_gets_no_user_network() {
    let mut scene = Scene::new("[nic.net]\n[nic.lan]\n").await;
    scene.machine.shut_off = true;
    let refused = scene.machine.apply(&LiveChange::AddNic(scene.nic("lan"))).await;
    assert!(matches!(refused, Err(Error::ShutOff)), "{refused:?}");
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn nic_without_a_tap_has_nothing_to_move() {
    let scene = Scene::new("[nic.net]\n").await;
    for change in [
        LiveChange::MoveNic(scene.nic("net")),
        LiveChange::IsolateNic(scene.nic("net")),
        LiveChange::FilterNic(scene.nic("net")),
    ] {
        assert_eq!(scene.machine.apply(&change).await.unwrap(), ChangeOutcome::Done);
    }
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn disk_gets_nodes_descriptors_and_device() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(&with_disk(dir.path())).await;
    // The sets of the start, and those of a removed disk of that name.
    let set = |set: i32, node: &str| json!({ "fdset-id": set, "fds": [{ "opaque": node }] });
    scene.on("query-fdsets", json!([set(44, "node-root /r"), set(47, "node-data /old")]));
    let change = LiveChange::AddDisk(scene.disk("data"));
    assert_eq!(scene.machine.apply(&change).await.unwrap(), ChangeOutcome::Done);
    let changes = scene.changes();
    let expected = [
        "blockdev-del",
        "blockdev-del",
        "blockdev-del",
        "object-del",
        "object-del",
        "remove-fd",
        "add-fd",
        "object-add",
        "blockdev-add",
        "blockdev-add",
        "blockdev-add",
        "device_add",
    ];
    assert_eq!(changes, expected, "{changes:?}");
    // Sets of other disks are not removed, and no number is used twice.
    assert_eq!(scene.arguments("remove-fd"), json!({ "fdset-id": 47 }));
    let added = scene.arguments("add-fd");
    assert_eq!(added["fdset-id"], 48);
    let file = dir.path().join("data.raw");
    assert_eq!(added["opaque"], format!("node-data {}", file.display()));
    let device = scene.arguments("device_add");
    assert_eq!((&device["id"], &device["bus"]), (&"disk-data".into(), &"port-disk0".into()));
    assert_eq!(device["drive"], "node-data");
}

#[tokio::test]
async fn refused_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(&with_disk(dir.path())).await;
    scene.refuse("device_add", "no");
    let refused = scene.machine.apply(&LiveChange::AddDisk(scene.disk("data"))).await;
    assert!(matches!(refused, Err(Error::Monitor(_))), "{refused:?}");
    let changes = scene.changes();
    let after =
        ["device_add", "blockdev-del", "blockdev-del", "blockdev-del", "object-del", "object-del"];
    assert_eq!(changes[changes.len() - after.len()..], after, "{changes:?}");
}

#[tokio::test]
async fn disk_without_a_file_is_not_plugged_in() {
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(&with_disk(dir.path())).await;
    std::fs::remove_file(dir.path().join("data.raw")).unwrap();
    let refused = scene.machine.apply(&LiveChange::AddDisk(scene.disk("data"))).await;
    assert!(matches!(refused, Err(Error::Prepare(_))), "{refused:?}");
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn absent_device_needs_no_removal() {
    let scene = Scene::new("vcpu = 1\n").await;
    scene.set_devices(&["nic-net"]);
    let done = scene.machine.apply(&LiveChange::RemoveNic(label("lan"))).await.unwrap();
    assert_eq!(done, ChangeOutcome::Asked);
    assert_eq!(scene.changes(), NONE);
}

#[tokio::test]
async fn removal_ends_at_the_device_release() {
    let scene = Scene::new("vcpu = 1\n").await;
    scene.set_devices(&["disk-data"]);
    let change = LiveChange::RemoveDisk(label("data"));
    let (done, ()) = tokio::join!(scene.machine.apply(&change), async {
        scene.fake.peer.commands.until("device_del").await;
        scene.set_devices(&[]);
    });
    assert_eq!(done.unwrap(), ChangeOutcome::Asked);
    assert_eq!(scene.arguments("device_del"), json!({ "id": "disk-data" }));
}

#[tokio::test]
async fn second_removal_of_a_device_waits_too() {
    let scene = Scene::new("vcpu = 1\n").await;
    scene.set_devices(&["nic-lan"]);
    scene.refuse("device_del", "Device nic-lan is already in the process of unplug");
    let change = LiveChange::RemoveNic(label("lan"));
    let (done, ()) = tokio::join!(scene.machine.apply(&change), async {
        scene.fake.peer.commands.until("device_del").await;
        scene.set_devices(&[]);
    });
    assert_eq!(done.unwrap(), ChangeOutcome::Asked);
}

#[tokio::test]
async fn refused_removal_is_an_error() {
    let scene = Scene::new("vcpu = 1\n").await;
    scene.set_devices(&["nic-lan"]);
    scene.refuse("device_del", "Bus 'pcie.0' does not support hotplugging");
    let refused = scene.machine.apply(&LiveChange::RemoveNic(label("lan"))).await;
    assert!(matches!(refused, Err(Error::Monitor(_))), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn wait_for_a_device_release_is_bounded() {
    let scene = Scene::new("vcpu = 1\n").await;
    scene.set_devices(&["nic-lan"]);
    let begun = tokio::time::Instant::now();
    let done = scene.machine.apply(&LiveChange::RemoveNic(label("lan"))).await.unwrap();
    assert_eq!(done, ChangeOutcome::Asked);
    let waited = begun.elapsed();
    assert!(waited >= LET_GO && waited < 2 * LET_GO, "{waited:?}");
}

#[tokio::test]
async fn released_device_leaves_nothing() {
    let scene = Scene::new("vcpu = 1\n").await;
    let set = json!({ "fdset-id": 50, "fds": [{ "opaque": "node-data /d" }] });
    scene.on("query-fdsets", json!([set]));
    tidy(&scene.machine.client, &LiveChange::RemoveDisk(label("data"))).await;
    assert_eq!(scene.arguments("remove-fd"), json!({ "fdset-id": 50 }));
    tidy(&scene.machine.client, &LiveChange::RemoveNic(label("lan"))).await;
    assert_eq!(scene.arguments("netdev_del"), json!({ "id": "net-lan" }));
    let before = scene.changes().len();
    tidy(&scene.machine.client, &LiveChange::SetLink(label("lan"), LinkState::Up)).await;
    assert_eq!(scene.changes().len(), before);
}
