//! The creation of a snapshot, with a scripted QEMU.

use std::{os::unix::fs::MetadataExt, process::Command};

use super::*;
use crate::{
    store::snapshot_record::SwitchPhase,
    supervisor::tests::{Answer, FakeQemu, Host, vm},
};

const TEXT: &str = "accel = \"tcg\"\n[disk.root]\nsize = \"8M\"\n";

fn qemu_img() -> QemuImg {
    QemuImg::new("qemu-img")
}

/// A host whose VM has a qcow2 disk, and a QEMU process with its nodes.
async fn scene() -> (Host, FakeQemu) {
    let host = Host::new();
    let disk = host.ctx.paths().state.join("root.qcow2");
    let mut command = Command::new("qemu-img");
    let made = command.args(["create", "-q", "-f", "qcow2"]).arg(disk).arg("8M").status();
    assert!(made.unwrap().success());
    let fake = FakeQemu::new(&host).await;
    nodes(&fake, &["node-root", "format-root"]);
    fake.peer.script.on("query-fdsets", Answer::Return(json!([])));
    (host, fake)
}

fn nodes(fake: &FakeQemu, names: &[&str]) {
    let all: Vec<_> = names.iter().map(|name| json!({ "node-name": name })).collect();
    fake.peer.script.on("query-named-block-nodes", Answer::Return(all.into()));
}

fn running() -> RunningDisks {
    let (vm, text) = (vm(TEXT), TEXT.to_owned());
    RunningDisks { vm, text, guest: Guest::Running, is_ready: true }
}

fn wanted(name: &str, freeze: bool) -> SnapshotToCreate {
    SnapshotToCreate { name: Some(name.parse().unwrap()), comment: None, freeze }
}

struct Components {
    creation: SnapshotCreation,
    freeze: Freeze,
}

impl Components {
    fn new() -> Self {
        Self { creation: SnapshotCreation::default(), freeze: Freeze::default() }
    }

    /// Handles events until nothing is in progress.
    async fn settle(&mut self, host: &Host, fake: &mut FakeQemu) {
        while self.creation.is_active() {
            self.step(host, fake).await;
        }
    }

    async fn step(&mut self, host: &Host, fake: &mut FakeQemu) {
        match fake.event().await {
            VmEvent::Snapshot(event) => {
                self.creation.handle(event, &mut self.freeze, &mut fake.qemu, &host.ctx);
            }
            VmEvent::Freeze(event) => self.freeze.handle(event, &mut fake.qemu, &host.ctx),
            _ => {}
        }
    }

    async fn create(
        &mut self,
        host: &Host,
        fake: &mut FakeQemu,
        snapshot: SnapshotToCreate,
    ) -> Result<CreatedSnapshot, Refusal> {
        let (reply, answer) = oneshot::channel();
        let of = Ok(running());
        self.creation.begin(snapshot, of, reply, &self.freeze, &mut fake.qemu, &host.ctx);
        self.settle(host, fake).await;
        answer.await.unwrap()
    }
}

fn names(host: &Host) -> Vec<String> {
    let all = std::fs::read_dir(&host.ctx.paths().state).unwrap();
    let mut all: Vec<String> = all
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("root"))
        .collect();
    all.sort();
    all
}

fn inode(host: &Host, file: &str) -> u64 {
    std::fs::metadata(host.ctx.paths().state.join(file)).unwrap().ino()
}

fn phase(host: &Host) -> Option<SwitchPhase> {
    Snapshots::read(host.ctx.paths()).unwrap().present.switch.map(|switch| switch.phase)
}

#[tokio::test]
async fn qemu_changes_to_the_overlay_after_the_rename() {
    let (mut host, mut fake) = scene().await;
    let before = inode(&host, "root.qcow2");
    let created = Components::new().create(&host, &mut fake, wanted("a", false)).await.unwrap();
    assert_eq!((created.kind.as_str(), created.consistency.as_str()), ("overlay", "paused"));
    assert_eq!(created.not_frozen, None);
    let commands = fake.peer.commands.names();
    let at = |name: &str| commands.iter().position(|other| other == name).unwrap();
    assert!(at("add-fd") < at("blockdev-add") && at("blockdev-add") < at("transaction"));
    let action = &fake.peer.commands.arguments("transaction")["actions"][0];
    let data = json!({ "node": "format-root", "overlay": "format-root.40" });
    assert_eq!(action["data"], data);
    let overlay = fake.peer.commands.arguments("blockdev-add");
    assert_eq!((&overlay["backing"], &overlay["read-only"]), (&json!(null), &json!(false)));
    assert_eq!(fake.peer.commands.arguments("add-fd")["opaque"], "node-root a");
    assert_eq!(names(&host), ["root.qcow2", "root@a.qcow2"]);
    assert_eq!(inode(&host, "root@a.qcow2"), before);
    assert_eq!(phase(&host), None);
    assert!(fake.peer.calls.names().is_empty(), "the agent was asked");
    assert_eq!(host.published(), ["QVM_SNAPSHOT"]);
}

#[tokio::test]
async fn guest_is_frozen_only_for_the_change() {
    let (host, mut fake) = scene().await;
    fake.peer.script.on("guest-fsfreeze-freeze", Answer::Return(2.into()));
    fake.peer.script.on("guest-fsfreeze-thaw", Answer::Return(2.into()));
    let mut components = Components::new();
    let created = components.create(&host, &mut fake, wanted("a", true)).await.unwrap();
    assert_eq!((created.consistency.as_str(), created.not_frozen), ("frozen", None));
    while components.freeze.left(&host.ctx).is_some() {
        components.step(&host, &mut fake).await;
    }
    fake.peer.calls.until("guest-fsfreeze-thaw").await;
}

#[tokio::test]
async fn guest_without_agent_is_reported() {
    let (host, mut fake) = scene().await;
    fake.peer.script.on("guest-ping", Answer::Refuse("no"));
    let created = Components::new().create(&host, &mut fake, wanted("a", true)).await.unwrap();
    assert_eq!(created.consistency, "paused");
    assert!(created.not_frozen.is_some());
}

#[tokio::test]
async fn refused_change_is_undone() {
    let (host, mut fake) = scene().await;
    let before = inode(&host, "root.qcow2");
    for command in ["transaction", "blockdev-add", "add-fd"] {
        fake.peer.script.on(command, Answer::Refuse("no"));
        let done = Components::new().create(&host, &mut fake, wanted("a", false)).await;
        assert!(matches!(done, Err(Refusal::Failed(..))), "{command}: {done:?}");
        assert_eq!(names(&host), ["root.qcow2"], "{command}");
        assert_eq!(inode(&host, "root.qcow2"), before, "{command}");
        assert_eq!(phase(&host), None, "{command}");
        fake.peer.commands.until("remove-fd").await;
    }
}

#[tokio::test]
async fn vm_that_refuses_is_untouched() {
    let (host, mut fake) = scene().await;
    let mut components = Components::new();
    let (reply, answer) = oneshot::channel();
    let refused = Err(Refusal::NotNow("stopping"));
    let Components { creation, freeze } = &mut components;
    creation.begin(wanted("a", false), refused, reply, freeze, &mut fake.qemu, &host.ctx);
    assert_eq!(answer.await.unwrap(), Err(Refusal::NotNow("stopping")));
    assert!(!creation.is_active());
    // Only one at a time.
    let (first, _first) = oneshot::channel();
    creation.begin(wanted("a", false), Ok(running()), first, freeze, &mut fake.qemu, &host.ctx);
    let (second, answer) = oneshot::channel();
    creation.begin(wanted("b", false), Ok(running()), second, freeze, &mut fake.qemu, &host.ctx);
    assert!(matches!(answer.await.unwrap(), Err(Refusal::Failed(..))));
    components.settle(&host, &mut fake).await;
    assert_eq!(names(&host), ["root.qcow2", "root@a.qcow2"]);
}

#[tokio::test]
async fn guest_of_an_earlier_qvm_is_refused() {
    let (host, mut fake) = scene().await;
    nodes(&fake, &["node-root"]);
    let done = Components::new().create(&host, &mut fake, wanted("a", false)).await;
    assert!(matches!(done, Err(Refusal::Failed(_, why)) if why.contains("earlier version")));
    assert_eq!(names(&host), ["root.qcow2"]);
}

/// A snapshot `a` whose supervisor died after the rename.
async fn renamed(host: &Host, fake: &mut FakeQemu) {
    let (vm, text, paths) = (vm(TEXT), TEXT.to_owned(), host.ctx.paths().clone());
    let disks = VmDisks {
        vm,
        text,
        paths,
        machine: None,
        qemu_version: None,
        snapshots: Snapshots::default(),
        qemu_img: qemu_img(),
    };
    let request = Request { name: Some("a".parse().unwrap()), comment: None, now: host.ctx.now() };
    let mut live = LiveCreate::prepare(disks, &request, Guest::Running).unwrap();
    assert_eq!(phase(host), Some(SwitchPhase::Preparing));
    live.switch().unwrap();
    assert_eq!(phase(host), Some(SwitchPhase::Switching));
    let set = json!([{ "fdset-id": 41, "fds": [{ "fd": 9, "opaque": "node-root a" }] }]);
    fake.peer.script.on("query-fdsets", Answer::Return(set));
    nodes(fake, &["node-root", "format-root", "format-root.41", "file-root.41"]);
}

#[tokio::test]
async fn next_supervisor_completes_what_qemu_uses() {
    let (host, mut fake) = scene().await;
    let before = inode(&host, "root.qcow2");
    renamed(&host, &mut fake).await;
    fake.peer.script.on("blockdev-del", Answer::Refuse("is in use"));
    let mut components = Components::new();
    components.creation.recall(&mut fake.qemu, &host.ctx);
    components.settle(&host, &mut fake).await;
    assert_eq!(phase(&host), None);
    let all = Snapshots::read(host.ctx.paths()).unwrap();
    assert_eq!(all.all[0].consistency, Consistency::Paused);
    assert_eq!(inode(&host, "root@a.qcow2"), before);
}

#[tokio::test]
async fn next_supervisor_undoes_what_qemu_does_not_use() {
    for is_known in [true, false] {
        let (host, mut fake) = scene().await;
        let before = inode(&host, "root.qcow2");
        renamed(&host, &mut fake).await;
        if !is_known {
            fake.peer.script.on("query-fdsets", Answer::Return(json!([])));
        }
        let mut components = Components::new();
        components.creation.recall(&mut fake.qemu, &host.ctx);
        components.settle(&host, &mut fake).await;
        assert_eq!((phase(&host), names(&host)), (None, vec!["root.qcow2".to_owned()]));
        assert_eq!(inode(&host, "root.qcow2"), before);
    }
}

#[tokio::test]
async fn silent_qemu_leaves_the_snapshot_to_the_next_one() {
    let (host, mut fake) = scene().await;
    renamed(&host, &mut fake).await;
    fake.peer.script.on("query-fdsets", Answer::Refuse("no"));
    let mut components = Components::new();
    components.creation.recall(&mut fake.qemu, &host.ctx);
    components.settle(&host, &mut fake).await;
    assert_eq!(phase(&host), Some(SwitchPhase::Switching));
    // A new one is refused until it is settled.
    let done = components.create(&host, &mut fake, wanted("b", false)).await;
    assert!(done.is_err(), "{done:?}");
    assert_eq!(phase(&host), Some(SwitchPhase::Switching));
}
