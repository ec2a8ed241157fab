//! Launches of a program that is no QEMU, but answers on its monitor.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use super::*;
use crate::{
    life::Leftover,
    store::saved_header::Saved,
    supervisor::{
        start::{leftover::find_leftover, prepare},
        tests::{Host, prepared_vm, qemu_program},
    },
    sys::progress::Cancel,
};

/// The environment variable with the directory of the program.
const DIRECTORY: &str = "QVM_TEST_FAKE_QEMU";

/// The program: this test binary, which `qemu_program` executes. It appends each command to
/// `commands`, and answers by `answers.json`, by an error where the answer is a string.
#[test]
#[ignore = "the program of the other tests"]
fn fake_qemu() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let answers = fs::read(directory.join("answers.json")).unwrap();
    let answers: Value = serde_json::from_slice(&answers).unwrap();
    // Its own descriptor by its number, which is free of unsafe code.
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let monitor = pidfd_getfd(&own, fd::QMP, PidfdGetfdFlags::empty()).unwrap();
    let (stream, _) = UnixListener::from(monitor).accept().unwrap();
    let mut commands =
        fs::File::options().create(true).append(true).open(directory.join("commands")).unwrap();
    let mut replies = stream.try_clone().unwrap();
    writeln!(replies, "{}", qmp::fake::GREETING).unwrap();
    for line in BufReader::new(stream).lines() {
        let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let name = command["execute"].as_str().unwrap();
        writeln!(commands, "{name}").unwrap();
        let reply = match &answers[name] {
            Value::String(why) => {
                json!({ "error": { "class": "GenericError", "desc": why }, "id": command["id"] })
            }
            Value::Null => json!({ "return": {}, "id": command["id"] }),
            answer => json!({ "return": answer, "id": command["id"] }),
        };
        writeln!(replies, "{reply}").unwrap();
    }
}

/// A prepared VM, whose program is [`fake_qemu`] or a script.
struct Scene {
    host: Host,
    settings: Settings,
}

impl Scene {
    /// The program answers so.
    fn answering(answers: &Value) -> Self {
        let scene = Self::executing("");
        fs::write(scene.at("answers.json"), answers.to_string()).unwrap();
        let binary = std::env::current_exe().unwrap();
        let (module, directory) = (module_path!().split_once("::").unwrap().1, scene.at(""));
        let script = format!(
            "{DIRECTORY}='{}' exec '{}' --exact {module}::fake_qemu --ignored --nocapture \
             >/dev/null",
            directory.display(),
            binary.display()
        );
        qemu_program(scene.host.dir.path(), &script);
        scene
    }

    /// The program is this script of sh(1).
    fn executing(script: &str) -> Self {
        let host = Host::new();
        let mut settings = host.ctx.settings().clone();
        settings.qemu = Some(qemu_program(host.dir.path(), script).into());
        Self { host, settings }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.host.dir.path().join(path)
    }

    fn paths(&self) -> VmPaths {
        self.settings.paths()
    }

    fn prepared(&self, text: &str) -> Prepared {
        let vm = prepared_vm(self.host.dir.path(), &format!("isolation = \"off\"\n{text}"));
        prepare::prepare(&self.settings, vm, &Cancel::default(), &|_| ()).unwrap()
    }

    async fn launch(&self, text: &str, boot: Boot) -> Result<LaunchedQemu, Error> {
        launch(&self.settings, self.prepared(text), "the text", boot).await
    }

    /// The commands that the program has read.
    fn commands(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("commands")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn record(&self) -> Option<Record> {
        let text = fs::read(self.paths().record()).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// Asserts that no process of the VM is left. A child of another test, forked meanwhile, has
    /// the locks until it executes its program.
    fn assert_gone(&self) {
        let is_gone = |_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            find_leftover(&self.paths()) == Leftover::None
        };
        assert!((0..12_000).any(is_gone));
    }
}

/// Saves a state that the next launch restores.
fn save(path: &Path, held: bool) {
    let head = Saved {
        vm_file: String::new(),
        at: "2026-01-01T00:00:00Z".into(),
        qemu_version: "8.2.1".into(),
        held,
        ready: true,
    };
    let (writing, mut file) = saved_state::Writing::begin(path, &head).unwrap();
    file.write_all(b"state").unwrap();
    writing.commit().unwrap();
}

#[tokio::test]
async fn launched_guest_is_recorded_and_continued() {
    let scene = Scene::answering(&json!({}));
    let launched = scene.launch("", Boot::Cold).await.unwrap();
    assert_eq!(launched.found, Guest::Running);
    assert!(!launched.adopted && launched.vnc.is_none());
    assert_eq!(scene.commands(), ["qmp_capabilities", "cont"]);
    // The next supervisor finds the process and the VM file.
    let record = scene.record().unwrap();
    assert_eq!(record.pid, launched.process.pid());
    assert_eq!(record.qemu_version, "8.2.1");
    assert!(record.isolation.is_some() && record.restoring.is_none() && !record.ready);
    assert_eq!(fs::read_to_string(scene.paths().booted()).unwrap(), "the text");
    assert_eq!(find_leftover(&scene.paths()), Leftover::MayRun);
    // It alone has the liveness locks: this process has given them away.
    assert!(crate::store::liveness::Liveness::for_qemu(&scene.paths()).is_err());
    launched.process.kill_and_reap();
    scene.assert_gone();
    assert!(crate::store::liveness::Liveness::for_qemu(&scene.paths()).is_ok());
}

#[tokio::test]
async fn cable_is_disconnected_before_the_guest_runs() {
    let scene = Scene::answering(&json!({}));
    let launched = scene.launch("[nic.net]\nlink = \"down\"\n", Boot::Cold).await.unwrap();
    assert_eq!(scene.commands(), ["qmp_capabilities", "set_link", "cont"]);
    launched.process.kill_and_reap();
}

#[tokio::test]
async fn refused_command_kills_the_process() {
    let scene = Scene::answering(&json!({ "cont": "no" }));
    let error = scene.launch("", Boot::Cold).await.unwrap_err();
    assert!(matches!(error, Error::Monitor(_)), "{error:?}");
    scene.assert_gone();
}

#[tokio::test]
async fn program_that_exits_is_reported() {
    let scene = Scene::executing("exit 1");
    let error = scene.launch("", Boot::Cold).await.unwrap_err();
    assert!(matches!(error, Error::Exited), "{error:?}");
    scene.assert_gone();
}

#[tokio::test]
async fn dropped_launch_kills_the_process() {
    // It never answers.
    let scene = Scene::executing("exec sleep 600");
    let prepared = scene.prepared("");
    let recorded = async {
        while scene.record().is_none_or(|record| record.isolation.is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        launched = launch(&scene.settings, prepared, "", Boot::Cold) => panic!("{launched:?}"),
        () = recorded => {}
    }
    scene.assert_gone();
}

#[tokio::test]
async fn saved_state_is_restored_once() {
    for (held, found, last) in
        [(false, Guest::Running, "cont"), (true, Guest::Paused, "query-status")]
    {
        let scene = Scene::answering(&json!({ "query-status": { "status": "paused" } }));
        let saved = scene.paths().saved();
        save(&saved, held);
        let launched = scene.launch("", Boot::Restore).await.unwrap();
        assert_eq!(launched.found, found);
        assert_eq!(scene.commands().last().unwrap(), last, "held: {held}");
        assert!(!saved.exists());
        let record = scene.record().unwrap();
        assert_eq!((record.restoring, record.held, record.ready), (None, held, true));
        launched.process.kill_and_reap();
    }
}

#[tokio::test]
async fn state_that_is_not_restored_is_kept() {
    let scene = Scene::answering(&json!({ "query-status": "no" }));
    save(&scene.paths().saved(), false);
    let error = scene.launch("", Boot::Restore).await.unwrap_err();
    assert!(matches!(error, Error::Monitor(_)), "{error:?}");
    assert!(scene.paths().saved().exists());
    scene.assert_gone();
    // A state that is damaged starts no process.
    fs::write(scene.paths().saved(), "nonsense").unwrap();
    let error = scene.launch("", Boot::Restore).await.unwrap_err();
    assert!(matches!(error, Error::Saved(_)), "{error:?}");
}

#[tokio::test]
async fn port_in_use_starts_no_process() {
    let scene = Scene::answering(&json!({}));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = format!("[nic.net]\nforward = [\"127.0.0.1:{port}:22\"]\n");
    let error = scene.launch(&text, Boot::Cold).await.unwrap_err();
    assert!(matches!(error, Error::Forward(_)), "{error:?}");
    assert!(scene.record().is_none());
}

#[tokio::test]
async fn missing_bridge_starts_no_process() {
    let scene = Scene::answering(&json!({}));
    let error = scene.launch("[nic.net]\nbridge = \"qvmnone0\"\n", Boot::Cold).await.unwrap_err();
    assert!(matches!(error, Error::Tap(_)), "{error:?}");
    assert!(scene.record().is_none());
}
