//! What a failed or canceled launch leaves, by the run record and the process.

use std::process::Child;

use super::*;
use crate::supervisor::tests::{Host, record};

/// A process with a run record, which is killed also where the test fails.
struct Recorded {
    host: Host,
    child: Child,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Recorded {
    fn new() -> Self {
        let host = Host::new();
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut record = record();
        record.pid = child.id();
        record.start_time = pidfd::start_time(child.id()).unwrap();
        record.boot_id = pidfd::boot_id().unwrap();
        record.write(host.ctx.paths(), "").unwrap();
        Self { host, child }
    }

    fn paths(&self) -> &VmPaths {
        self.host.ctx.paths()
    }
}

#[test]
fn no_record_is_no_leftover() {
    assert_eq!(find_leftover(Host::new().ctx.paths()), Leftover::None);
}

#[test]
fn running_process_may_run() {
    let recorded = Recorded::new();
    assert_eq!(find_leftover(recorded.paths()), Leftover::MayRun);
}

#[test]
fn exited_process_is_no_leftover() {
    let mut recorded = Recorded::new();
    recorded.child.kill().unwrap();
    recorded.child.wait().unwrap();
    assert_eq!(find_leftover(recorded.paths()), Leftover::None);
}

#[test]
fn locked_vm_with_an_unreadable_record_may_run() {
    let recorded = Recorded::new();
    let cancel = crate::sys::progress::Cancel::default();
    let liveness = crate::store::liveness::Liveness::for_start(recorded.paths(), &cancel).unwrap();
    std::fs::write(recorded.paths().record(), "{").unwrap();
    // As QEMU has the locks.
    let fds = liveness.into_fds([40, 41]).unwrap();
    assert_eq!(find_leftover(recorded.paths()), Leftover::MayRun);
    drop(fds);
}

#[tokio::test]
async fn launched_process_is_killed() {
    let mut recorded = Recorded::new();
    let paths = recorded.paths().clone();
    // The test is the parent that reaps.
    kill_launched(&paths).await;
    assert_eq!(find_leftover(&paths), Leftover::None);
    let status = recorded.child.wait();
    let killed = std::os::unix::process::ExitStatusExt::signal;
    assert!(status.map_or(true, |status| killed(&status) == Some(9)));
}

#[tokio::test]
async fn nothing_to_kill_is_no_error() {
    kill_launched(Host::new().ctx.paths()).await;
}
