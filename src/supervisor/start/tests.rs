//! The start without QEMU: temporary directories, a fake monitor, and a process that is no QEMU.

use std::{fs, path::Path, process::Child};

use qmp::fake::{Turn, greeted, play};
use serde_json::json;
use tokio::net::UnixListener;

use super::*;
use crate::{
    life::{Fault, Guest, PreviousQemu as Previous, SavedState},
    net::broker::Network,
    spec,
    store::layout::Layout,
    sys::{lock::Lock, pidfd},
    systemd::unit::Scope,
};

struct Host {
    settings: Settings,
    ctx: Context,
}

impl Host {
    fn new(dir: &Path) -> Self {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        let settings = Settings {
            layout: Layout { config, state, runtime },
            name: "web".parse().unwrap(),
            qemu: Some(dir.join("no-such-qemu").into()),
            search_path: None,
            config_home: None,
            root: dir.join("root"),
            host_id: "0".repeat(32),
            scope: Scope::User,
            network: Network::default(),
            machined: None,
            uuid: || "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
            now: jiff::Timestamp::now,
            // A unit has the cgroup.
            env: |key| (key == "SYSTEMD_EXEC_PID").then(|| std::process::id().to_string()),
        };
        fs::create_dir_all(settings.paths().runtime).unwrap();
        fs::create_dir_all(settings.paths().state).unwrap();
        let ctx = Context::new(settings.clone());
        Self { settings, ctx }
    }

    fn start(&self) -> Start {
        Start::new(Resources::new(&self.ctx))
    }

    fn vm(&self) -> Vm {
        let file = self.settings.layout.vm_file(&self.settings.name);
        let mut user_data = |path: &Path| fs::read(path);
        spec::read(
            &self.settings.name,
            &file,
            "[image]\npath = \"/srv/debian.qcow2\"\n",
            &mut user_data,
        )
        .unwrap()
    }

    /// A process with a record of a QEMU process.
    fn previous_qemu(&self) -> Child {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let text = include_str!("../../../tests/golden/record-newer.json");
        let mut record: serde_json::Value = serde_json::from_str(text).unwrap();
        record["pid"] = child.id().into();
        record["startTime"] = pidfd::start_time(child.id()).unwrap().into();
        record["bootId"] = pidfd::boot_id().unwrap().into();
        fs::write(self.settings.paths().record(), record.to_string()).unwrap();
        child
    }
}

/// Kills the process also where the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn previous(start: &mut Start) -> StartEvent {
    start.find_previous("/nonexistent/web.toml".into()).unwrap();
    match start.next().await {
        Report::Previous { event, .. } => event,
        other => panic!("{other:?}"),
    }
}

async fn ended(start: &mut Start) -> StartEvent {
    match start.next().await {
        Report::Ended(event) => event,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn first_start_finds_nothing_and_is_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut start = host.start();
    let none = StartEvent::PreviousFound { qemu: Previous::None, saved: SavedState::None };
    assert_eq!(previous(&mut start).await, none);
    assert_eq!(start.adopting_pid(), None);
    start.admit(1 << 30).unwrap();
    assert!(matches!(start.next().await, Report::Admitted(None)));
}

#[tokio::test]
async fn phase_without_the_one_before_fails() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut start = host.start();
    let refused = start.launch(Boot::Cold, host.vm(), String::new()).unwrap_err();
    assert!(matches!(refused, StartEvent::Failed { leftover: Leftover::None, .. }), "{refused:?}");
    // Nothing is known about a process that was not found.
    let refused = start.adopt(host.vm()).unwrap_err();
    assert!(
        matches!(refused, StartEvent::Failed { leftover: Leftover::MayRun, .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn preparation_without_qemu_fails() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut start = host.start();
    start.prepare(host.vm()).unwrap();
    let StartEvent::Failed { failure, leftover } = ended(&mut start).await else {
        panic!("prepared");
    };
    assert_eq!((failure.fault, leftover), (Fault::Vm, Leftover::None), "{}", failure.why);
    assert!(failure.why.text.contains("no-such-qemu"), "{}", failure.why);
}

#[tokio::test]
async fn canceled_preparation_reports_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut start = host.start();
    start.cancel();
    start.prepare(host.vm()).unwrap();
    assert!(matches!(ended(&mut start).await, StartEvent::Failed { .. }));
}

#[tokio::test]
async fn canceled_admission_is_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    fs::create_dir_all(host.settings.layout.reservations()).unwrap();
    let lock = host.settings.layout.admission_lock();
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let _held = Lock::acquire(&lock).unwrap();
    let mut start = host.start();
    start.admit(1 << 30).unwrap();
    start.cancel();
    assert_eq!(ended(&mut start).await, StartEvent::Aborted(Leftover::None));
}

#[tokio::test]
async fn dropping_a_start_cancels_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let start = host.start();
    let cancel = start.cancel.clone();
    drop(start);
    assert!(cancel.is_set());
}

#[tokio::test]
async fn running_qemu_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let paths = host.settings.paths();
    let qemu = Killed(host.previous_qemu());
    let monitor = UnixListener::bind(paths.qmp_socket()).unwrap();
    let _serial = UnixListener::bind(paths.serial_socket()).unwrap();
    let _agent = UnixListener::bind(paths.agent_socket()).unwrap();
    let played = tokio::spawn(async move {
        let (stream, _) = monitor.accept().await.unwrap();
        let mut script = greeted();
        for (command, reply) in [
            ("query-vnc-servers", json!([])),
            ("query-status", json!({ "running": false, "status": "paused" })),
        ] {
            script.extend([Turn::Expect(command), Turn::Return(reply)]);
        }
        script.push(Turn::AwaitClose);
        play(stream, script).await
    });
    let mut start = host.start();
    let running = StartEvent::PreviousFound { qemu: Previous::Running, saved: SavedState::None };
    assert_eq!(previous(&mut start).await, running);
    start.adopt(host.vm()).unwrap();
    assert_eq!(start.adopting_pid(), Some(qemu.0.id()));
    let Report::Launched(launched) = start.next().await else { panic!("not adopted") };
    assert_eq!(launched.0.found, Guest::Paused);
    assert!(launched.0.adopted && !start.is_restore());
    drop(launched);
    played.await.unwrap();
}

#[tokio::test]
async fn exit_during_adoption_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut qemu = Killed(host.previous_qemu());
    let monitor = UnixListener::bind(host.settings.paths().qmp_socket()).unwrap();
    let mut start = host.start();
    previous(&mut start).await;
    start.adopt(host.vm()).unwrap();
    let (stream, _) = monitor.accept().await.unwrap();
    drop((stream, monitor));
    fs::remove_file(host.settings.paths().qmp_socket()).unwrap();
    qemu.0.kill().unwrap();
    qemu.0.wait().unwrap();
    let StartEvent::Failed { leftover, .. } = ended(&mut start).await else { panic!("adopted") };
    assert_eq!(leftover, Leftover::None);
}

#[tokio::test]
async fn canceled_adoption_leaves_qemu_running() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let mut qemu = Killed(host.previous_qemu());
    let monitor = UnixListener::bind(host.settings.paths().qmp_socket()).unwrap();
    let mut start = host.start();
    previous(&mut start).await;
    start.adopt(host.vm()).unwrap();
    // It is connected, and never gets an answer.
    let _connection = monitor.accept().await.unwrap();
    start.cancel();
    assert_eq!(ended(&mut start).await, StartEvent::Aborted(Leftover::MayRun));
    assert!(qemu.0.try_wait().unwrap().is_none());
}

#[tokio::test]
async fn quarantined_state_is_renamed_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::new(dir.path());
    let paths = host.settings.paths();
    fs::write(paths.saved(), "x").unwrap();
    let mut start = host.start();
    start.quarantine_saved_state("damaged\nhint: none");
    host.ctx.lanes().state.flush().await.unwrap();
    assert!(!paths.saved().exists() && paths.unusable().exists());
    assert!(start.notes[0].text.contains("damaged;"), "{:?}", start.notes);
}
