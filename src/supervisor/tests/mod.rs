//! Fixtures of the supervisor's unit tests: a host below a temporary directory.

mod fake_qemu;
mod loop_steps;
#[path = "../../../tests/netns/mod.rs"]
pub(crate) mod netns;
mod requests;
mod scene;
mod shutdowns;
mod starts;
mod statuses;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::broadcast;

pub(crate) use self::fake_qemu::{Answer, FakeQemu, Peer, peer, peer_at, record};
use super::{context::Context, settings::Settings};
use crate::{
    control::types::Event,
    net::broker::Network,
    spec::{self, Vm},
    store::layout::Layout,
    systemd::unit::Scope,
};

/// The time limit of each wait, after which a test fails.
const LIMIT: Duration = Duration::from_secs(60);

/// A context below a temporary directory, which is removed with it.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ctx: Context,
    events: broadcast::Receiver<Arc<Event>>,
}

/// The settings of a VM `web` below `dir`.
pub(crate) fn settings(dir: &Path) -> Settings {
    let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
    Settings {
        layout: Layout { config, state, runtime },
        name: "web".parse().unwrap(),
        qemu: None,
        search_path: None,
        config_home: None,
        root: dir.to_owned(),
        host_id: "0123456789abcdef0123456789abcdef".into(),
        scope: Scope::User,
        network: Network::default(),
        machined: None,
        uuid: || "6f1ed002-ab5d-42b7-8d6e-5e1c2f3a4b5c".into(),
        now: jiff::Timestamp::now,
        env: |name| ENVIRONMENT.with_borrow(|all| all.get(name).cloned()),
    }
}

/// Reads a VM file of a VM `web` on TCG, whose disk is a file that this creates below `dir`.
pub(crate) fn prepared_vm(dir: &Path, text: &str) -> Vm {
    let file = dir.join("root.raw");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let (keys, tables) = match text.find('[') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let disk = format!("[disk.root]\npath = \"{}\"\nformat = \"raw\"\n", file.display());
    vm(&format!("accel = \"tcg\"\n{keys}{disk}{tables}"))
}

/// Creates a program below `dir` that prints the version and the machine types of QEMU 8.2, and
/// otherwise runs `script` of sh(1). Another process writes it, because a file that is open for
/// writing, even in a child that another test forks, cannot be executed (ETXTBSY).
pub(crate) fn qemu_program(dir: &Path, script: &str) -> PathBuf {
    let program = dir.join("qemu-system-x86_64");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in\n*' -version '*) echo 'QEMU emulator version 8.2.1'; exit ;;\n\
         *' -machine help '*) echo 'q35 PC (alias of pc-q35-8.2)'; exit ;;\nesac\n{script}\n"
    );
    let write = "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let mut command = std::process::Command::new("sh");
    let written = command.args(["-c", write, "sh"]).arg(&program).arg(text).status();
    assert!(written.unwrap().success());
    program
}

/// Reads a VM file of a VM `web`.
pub(crate) fn vm(text: &str) -> Vm {
    let file = Path::new("/v/web.toml");
    spec::read(&"web".parse().unwrap(), file, text, &mut |_| Ok(vec![])).unwrap()
}

thread_local! {
    /// The environment variables of the service manager, for contexts created by this thread.
    static ENVIRONMENT: RefCell<BTreeMap<&'static str, String>> = RefCell::default();
}

/// The notification socket of a service manager whose unit has this process as main process.
pub(crate) struct Unit {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Unit {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { dir, socket }
    }

    /// Reads notifications until one contains this text. Returns all of them.
    pub(crate) async fn until(&self, text: &str) -> Vec<String> {
        let (mut all, mut buffer) = (vec![], [0; 4096]);
        let begun = std::time::Instant::now();
        loop {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                assert!(begun.elapsed() < LIMIT, "no `{text}` in {all:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            let is_last = message.contains(text);
            all.push(message);
            if is_last {
                return all;
            }
        }
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// Creates a host with a supervisor that is the main process of this unit.
    pub(crate) fn in_unit(unit: &Unit) -> Self {
        Self::in_unit_with(unit, |_| ())
    }

    /// Creates a host in this unit with changed settings.
    pub(crate) fn in_unit_with(unit: &Unit, change: impl FnOnce(&mut Settings)) -> Self {
        let socket = unit.dir.path().join("notify").display().to_string();
        let watchdog = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "30000000".into())];
        ENVIRONMENT.with_borrow_mut(|all| all.extend(watchdog));
        let host = Self::with(change);
        ENVIRONMENT.with_borrow_mut(BTreeMap::clear);
        host
    }

    /// Creates a host with changed settings.
    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings);
        let ctx = Context::new(settings);
        for path in [&ctx.paths().state, &ctx.paths().runtime] {
            std::fs::create_dir_all(path).unwrap();
        }
        let events = ctx.watchers().subscribe();
        Self { dir, ctx, events }
    }

    /// Returns the names of the events that were published since the last call.
    pub(crate) fn published(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|event| event.event.clone())
            .collect()
    }
}
