//! Admission on a host of the test's own: memory, pressure, other VMs and their queue.

use std::fs;

use super::*;
use crate::supervisor::tests::Host;

const GIB: u64 = 1 << 30;
/// The memory of a guest that fits.
const MEM: u64 = GIB;

/// A host with 8 GiB of memory, of which 1 GiB is its own, and without pressure.
struct Scene {
    host: Host,
    settings: Settings,
    messages: mpsc::Sender<Message>,
    reports: mpsc::Receiver<Message>,
}

impl Scene {
    fn new() -> Self {
        let host = Host::new();
        let settings = host.ctx.settings().clone();
        let (messages, reports) = mpsc::channel(64);
        let scene = Self { host, settings, messages, reports };
        scene.write("proc/meminfo", &format!("MemTotal: {} kB\n", 8 * GIB / 1024));
        for resource in ["cpu", "io", "memory"] {
            scene.set_pressure(resource, 0);
        }
        scene.set_admission("refuse");
        scene
    }

    /// Writes a file below the directory of the host.
    fn write(&self, path: &str, text: &str) {
        let path = self.host.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn set_pressure(&self, resource: &str, percent: u8) {
        let line = |kind| format!("{kind} avg10={percent}.00 avg60=0.00 avg300=0.00 total=0\n");
        self.write(&format!("proc/pressure/{resource}"), &(line("some") + &line("full")));
    }

    fn set_admission(&self, admission: &str) {
        let file = self.settings.layout.host_settings();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let text = format!("reserveMem = \"1G\"\nadmission = \"{admission}\"\n");
        fs::write(file, text).unwrap();
    }

    fn admission(&self, mem: u64) -> Admission {
        Admission::new(self.settings.clone(), mem, self.messages.clone())
    }

    /// Another VM, whose supervisor is this process.
    fn reserve_other(&self, mem: u64, goes: bool) -> crate::store::layout::VmPaths {
        let paths = self.settings.layout.vm(&"db".parse().unwrap());
        fs::create_dir_all(&paths.runtime).unwrap();
        Reservation::new(mem, goes).unwrap().write(&paths).unwrap();
        paths
    }

    /// What this VM has reserved, and whether it has had its turn.
    fn reserved(&self) -> Option<(u64, bool)> {
        let text = fs::read(self.settings.paths().reservation()).ok()?;
        let own: Reservation = serde_json::from_slice(&text).unwrap();
        Some((own.mem_bytes, own.goes))
    }

    /// The next reason for which the start waits.
    async fn waiting(&mut self) -> String {
        let report = tokio::time::timeout(Duration::from_secs(60), self.reports.recv()).await;
        match report.expect("the start does not wait") {
            Some(Message::Waiting(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn turn_lock(&self) -> Lock {
        Lock::acquire(&self.settings.layout.turn_lock()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn hung_lock_holder_blocks_no_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let (messages, mut received) = mpsc::channel(9);
    let waits = format!("waits for process {}, which checks the memory", std::process::id());
    let held = Lock::acquire(&path).unwrap();
    let (short, ()) = tokio::join!(alone(&path, &messages), async {
        tokio::time::sleep(TOO_LONG / 2).await;
        drop(held);
    });
    assert!(short.unwrap().is_some());
    let _held = Lock::acquire(&path).unwrap();
    assert!(alone(&path, &messages).await.unwrap().is_none());
    for _ in ["of the one", "of the other"] {
        let message = received.try_recv();
        assert!(matches!(&message, Ok(Message::Waiting(why)) if *why == waits), "{message:?}");
    }
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn only_vm_is_admitted_and_reserved() {
    let mut scene = Scene::new();
    // Whatever the pressure: no other start causes it.
    scene.set_pressure("cpu", 99);
    assert!(scene.admission(MEM).admitted().await.unwrap().is_none());
    assert_eq!(scene.reserved(), Some((MEM, true)));
    assert!(scene.reports.try_recv().is_err());
}

#[tokio::test]
async fn memory_of_other_vms_is_not_given_twice() {
    let scene = Scene::new();
    let other = scene.reserve_other(5 * GIB, true);
    let error = scene.admission(2 * GIB).admitted().await.unwrap_err();
    assert!(matches!(error, Error::InsufficientMemory { .. }), "{error:?}");
    let failure = error.failure();
    assert_eq!(failure.fault, Fault::InsufficientMemory);
    assert_eq!(failure.why.code, ErrorCode::NoMemory);
    assert!(failure.why.to_string().contains("qvm.toml"), "{}", failure.why);
    assert_eq!(scene.reserved(), None);
    reservation::remove(&other);
    assert!(scene.admission(2 * GIB).admitted().await.unwrap().is_none());
}

#[tokio::test]
async fn vm_larger_than_the_host_never_fits() {
    let scene = Scene::new();
    let error = scene.admission(8 * GIB).admitted().await.unwrap_err();
    let why = error.failure().why.to_string();
    assert!(why.contains("reduce its `mem`") && !why.contains("stop another"), "{why}");
}

#[tokio::test]
async fn admission_can_be_off() {
    let scene = Scene::new();
    scene.set_admission("off");
    assert!(scene.admission(64 * GIB).admitted().await.unwrap().is_none());
    assert_eq!(scene.reserved(), Some((64 * GIB, true)));
}

#[tokio::test]
async fn unknown_memory_refuses_no_start() {
    let scene = Scene::new();
    fs::remove_file(scene.host.dir.path().join("proc/meminfo")).unwrap();
    assert_eq!(memory(&scene.settings.root, &scene.admission(MEM).host_settings()), None);
    assert!(scene.admission(64 * GIB).admitted().await.unwrap().is_none());
}

#[tokio::test]
async fn own_earlier_reservation_does_not_count() {
    let scene = Scene::new();
    Reservation::new(6 * GIB, true).unwrap().write(&scene.settings.paths()).unwrap();
    assert!(scene.admission(6 * GIB).admitted().await.unwrap().is_none());
    assert_eq!(scene.reserved(), Some((6 * GIB, true)));
}

#[tokio::test]
async fn waiting_start_is_woken_by_freed_memory() {
    let mut scene = Scene::new();
    scene.set_admission("wait");
    let other = scene.reserve_other(5 * GIB, true);
    let admission = scene.admission(2 * GIB);
    // Well within the interval at which a start that is not woken looks.
    let admitted = tokio::time::timeout(LOOK / 2, admission.admitted());
    let (admitted, why) = tokio::join!(admitted, async {
        let why = scene.waiting().await;
        reservation::remove(&other);
        why
    });
    assert!(admitted.expect("not woken").unwrap().is_none());
    assert!(why.starts_with("waits for memory: "), "{why}");
    assert_eq!(scene.reserved(), Some((2 * GIB, true)));
}

#[tokio::test]
async fn waiting_start_follows_the_host_settings() {
    let mut scene = Scene::new();
    scene.set_admission("wait");
    let _other = scene.reserve_other(5 * GIB, true);
    let admission = scene.admission(2 * GIB);
    let admitted = tokio::time::timeout(LOOK / 2, admission.admitted());
    let (refused, ()) = tokio::join!(admitted, async {
        scene.waiting().await;
        scene.set_admission("refuse");
    });
    let refused = refused.expect("not woken").unwrap_err();
    assert!(matches!(refused, Error::InsufficientMemory { .. }), "{refused:?}");
}

#[tokio::test]
async fn invalid_host_settings_are_ignored() {
    let scene = Scene::new();
    fs::write(scene.settings.layout.host_settings(), "admission = 7\n").unwrap();
    assert_eq!(scene.admission(MEM).host_settings().admission, spec::Admission::default());
    assert!(scene.admission(MEM).admitted().await.unwrap().is_none());
}

#[tokio::test]
async fn second_start_waits_for_lower_pressure() {
    let mut scene = Scene::new();
    let _other = scene.reserve_other(GIB, true);
    scene.set_pressure("io", 80);
    let admission = scene.admission(MEM);
    let (turn, why) = tokio::join!(admission.admitted(), async {
        let why = scene.waiting().await;
        // The memory is reserved meanwhile, but the start does not count as one under way.
        assert_eq!(scene.reserved(), Some((MEM, false)));
        scene.set_pressure("io", 1);
        why
    });
    // The turn lasts until the pressure that this start causes is visible.
    assert!(turn.unwrap().is_some());
    assert!(why.contains("under pressure: disks (80 %"), "{why}");
    assert_eq!(scene.reserved(), Some((MEM, true)));
    assert!(scene.reports.try_recv().is_err(), "the same reason is reported once");
}

#[tokio::test]
async fn lasting_pressure_delay_is_bounded() {
    let scene = Scene::new();
    let _other = scene.reserve_other(GIB, true);
    scene.set_pressure("memory", 50);
    let begun = Instant::now();
    assert!(scene.admission(MEM).admitted().await.unwrap().is_some());
    assert!(begun.elapsed() >= TURN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn new_start_does_not_overtake_the_queue() {
    let mut scene = Scene::new();
    let turn = scene.turn_lock();
    let admission = scene.admission(MEM);
    let (admitted, why) = tokio::join!(admission.admitted(), async {
        let why = scene.waiting().await;
        assert_eq!(scene.reserved(), Some((MEM, false)));
        drop(turn);
        why
    });
    // It had to wait for its turn, not for the pressure.
    assert!(admitted.unwrap().is_none());
    assert_eq!(why, "waits for its turn: other VMs wait before it");
    assert_eq!(scene.reserved(), Some((MEM, true)));
    drop(scene.turn_lock());
}

#[tokio::test]
async fn relaunch_is_never_refused() {
    let scene = Scene::new();
    let _other = scene.reserve_other(6 * GIB, true);
    scene.admission(4 * GIB).renew();
    assert_eq!(scene.reserved(), Some((4 * GIB, true)));
    reserve(&scene.settings, 2 * GIB);
    assert_eq!(scene.reserved(), Some((2 * GIB, true)));
}

#[tokio::test]
async fn unwritable_reservation_is_a_host_fault() {
    let scene = Scene::new();
    // A file in the place of the directory.
    fs::write(scene.settings.layout.reservations(), "").unwrap();
    let error = scene.admission(MEM).admitted().await.unwrap_err();
    assert_eq!(error.failure().fault, Fault::Host);
}
