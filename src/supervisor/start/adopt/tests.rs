//! Adoption of a scripted QEMU in each state in which an earlier supervisor may have left it.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tokio::net::UnixListener;

use super::*;
use crate::{
    life::{AfterQemu, Cause, End, Intention, Requester},
    supervisor::tests::{Answer, Host, Peer, peer, record},
};

/// A QEMU process of an earlier supervisor, and its serial console.
struct Scene {
    host: Host,
    peer: Peer,
    _serial: UnixListener,
}

impl Scene {
    fn new(run_state: &str) -> Self {
        let host = Host::new();
        let peer = peer(&host);
        let serial = UnixListener::bind(host.ctx.paths().serial_socket()).unwrap();
        peer.script.on("query-status", Answer::Return(json!({ "status": run_state })));
        peer.script.on("query-vnc-servers", Answer::Return(json!([])));
        Self { host, peer, _serial: serial }
    }

    /// The saved state of the guest, as far as adoption looks at it.
    fn save_state(&self) {
        std::fs::write(self.host.ctx.paths().saved(), "state").unwrap();
    }

    fn has_saved_state(&self) -> bool {
        self.host.ctx.paths().saved().exists()
    }

    async fn adopt(&self, record: Record) -> Result<LaunchedQemu, Error> {
        let process = Arc::new(Process::open(std::process::id()).unwrap());
        adopt(process, record, self.host.ctx.paths()).await
    }

    /// The commands that change the guest.
    fn changes(&self) -> Vec<String> {
        let names = self.peer.commands.names().into_iter();
        names.filter(|name| ["cont", "stop", "migrate_cancel"].contains(&name.as_str())).collect()
    }

    /// The run record that the adoption has written, where it has.
    fn written(&self) -> Option<Record> {
        let text = std::fs::read(self.host.ctx.paths().record()).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }
}

/// An intention to end QEMU for a suspended guest.
fn suspended() -> Option<RecordedIntention> {
    let end = End { cause: Cause::Suspended(Requester::Operator) };
    let intention = Intention { then: AfterQemu::End(end), deadline: None };
    Some(RecordedIntention::new(&intention, jiff::Timestamp::now(), Duration::ZERO))
}

#[tokio::test]
async fn guest_is_found_as_qemu_reports_it() {
    for (run_state, found) in [
        ("running", Guest::Running),
        ("paused", Guest::Paused),
        ("io-error", Guest::Paused),
        ("suspended", Guest::Paused),
        ("shutdown", Guest::ShutDown),
        ("guest-panicked", Guest::Panicked),
    ] {
        let scene = Scene::new(run_state);
        let adopted = scene.adopt(record()).await.unwrap();
        assert_eq!(adopted.found, found, "{run_state}");
        assert!(adopted.adopted && !adopted.listens);
        assert_eq!(scene.changes(), Vec::<String>::new(), "{run_state}");
        // Nothing has changed that the next supervisor reads.
        assert!(scene.written().is_none(), "{run_state}");
    }
}

#[tokio::test]
async fn guest_that_never_ran_is_continued() {
    let scene = Scene::new("prelaunch");
    let adopted = scene.adopt(record()).await.unwrap();
    assert_eq!(adopted.found, Guest::Running);
    assert_eq!(scene.changes(), ["cont"]);
}

#[tokio::test]
async fn interrupted_restore_is_finished() {
    for (held, changes) in [(false, vec!["cont"]), (true, vec![])] {
        let scene = Scene::new("paused");
        scene.save_state();
        let restoring = Record { restoring: Some(held), ..record() };
        let adopted = scene.adopt(restoring).await.unwrap();
        assert_eq!(scene.changes(), changes, "held: {held}");
        // It must not be restored a second time: the disks change from now on.
        assert!(!scene.has_saved_state());
        assert_eq!(adopted.record.restoring, None);
        assert_eq!(scene.written().unwrap().restoring, None);
    }
}

#[tokio::test]
async fn restore_under_way_is_waited_for() {
    let scene = Scene::new("inmigrate");
    scene.save_state();
    let restoring = Record { restoring: Some(false), ..record() };
    let (adopted, ()) = tokio::join!(scene.adopt(restoring), async {
        scene.peer.commands.until("query-status").await;
        assert!(scene.has_saved_state());
        let running = json!({ "status": "running" });
        scene.peer.script.on("query-status", Answer::Return(running));
    });
    assert_eq!(adopted.unwrap().found, Guest::Running);
    assert!(!scene.has_saved_state());
}

#[tokio::test]
async fn interrupted_save_is_canceled() {
    for (held, changes) in [(false, vec!["migrate_cancel", "cont"]), (true, vec!["migrate_cancel"])]
    {
        let scene = Scene::new("paused");
        let saving = Record { saving: Some(held), ..record() };
        let adopted = scene.adopt(saving).await.unwrap();
        assert_eq!(scene.changes(), changes, "held: {held}");
        assert_eq!(adopted.record.saving, None);
        assert_eq!(scene.written().unwrap().saving, None);
    }
}

#[tokio::test]
async fn end_of_a_canceled_save_is_awaited() {
    let scene = Scene::new("finish-migrate");
    scene.peer.script.on("cont", Answer::Refuse("Migration is not finalized yet"));
    let saving = Record { saving: Some(false), ..record() };
    let (adopted, ()) = tokio::join!(scene.adopt(saving), async {
        scene.peer.commands.until("query-status").await;
        scene.peer.script.on("cont", Answer::Return(json!({})));
        let running = json!({ "status": "running" });
        scene.peer.script.on("query-status", Answer::Return(running));
    });
    assert_eq!(adopted.unwrap().found, Guest::Running);
}

#[tokio::test]
async fn outdated_saved_state_is_removed() {
    let scene = Scene::new("running");
    scene.save_state();
    scene.adopt(record()).await.unwrap();
    assert!(!scene.has_saved_state());
}

#[tokio::test]
async fn suspended_guest_does_not_continue() {
    let scene = Scene::new("postmigrate");
    scene.save_state();
    let record = Record { intention: suspended(), saving: Some(false), ..record() };
    let adopted = scene.adopt(record).await.unwrap();
    assert_eq!(scene.changes(), Vec::<String>::new());
    assert!(scene.has_saved_state());
    assert!(adopted.record.intention.is_some());
    assert_eq!(scene.written().unwrap().saving, None);
}

#[tokio::test]
async fn suspension_without_a_saved_state_is_dropped() {
    let scene = Scene::new("paused");
    let record = Record { intention: suspended(), saving: Some(false), ..record() };
    let adopted = scene.adopt(record).await.unwrap();
    assert_eq!(scene.changes(), ["migrate_cancel", "cont"]);
    assert_eq!(adopted.record.intention, None);
}

#[tokio::test]
async fn sockets_become_the_supervisors_alone() {
    let scene = Scene::new("running");
    let paths = scene.host.ctx.paths();
    let sockets = [paths.qmp_socket(), paths.agent_socket(), paths.serial_socket()];
    for socket in &sockets {
        std::fs::set_permissions(socket, PermissionsExt::from_mode(0o660)).unwrap();
    }
    scene.adopt(record()).await.unwrap();
    for socket in &sockets {
        let mode = std::fs::metadata(socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", socket.display());
    }
}

#[tokio::test]
async fn viewers_of_an_earlier_version_are_qemus() {
    let scene = Scene::new("running");
    let server =
        json!([{ "id": "default", "server": [{ "host": "127.0.0.1", "service": "5901" }] }]);
    scene.peer.script.on("query-vnc-servers", Answer::Return(server));
    assert!(scene.adopt(record()).await.unwrap().listens);
}

#[tokio::test]
async fn refusing_monitor_names_the_process() {
    let scene = Scene::new("running");
    scene.peer.script.on("query-status", Answer::Refuse("no"));
    let error = scene.adopt(record()).await.unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, Error::Silent { pid: named, .. } if named == pid), "{error:?}");
}

#[tokio::test]
async fn console_without_a_socket_is_an_error() {
    let scene = Scene::new("running");
    std::fs::remove_file(scene.host.ctx.paths().serial_socket()).unwrap();
    let error = scene.adopt(record()).await.unwrap_err();
    assert!(matches!(error, Error::Serial(_)), "{error:?}");
}
