//! The balloon of a Linux guest: its size is reported when it changes, also by a supervisor that
//! adopted the guest.

use crate::lab::{Lab, guest, signal, until};
use qvm::control::{client::Client, types::Command};

const SIGKILL: i32 = 9;

#[test]
fn balloon_size_is_reported_after_adoption() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let mut lab = Lab::new();
    lab.vm("web", &image, "mem = \"256M\"");
    let first = lab.run("web");
    lab.says("web", "READY", 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let has = |lab: &Lab, bytes: u64| {
        until("the balloon has that size", || lab.status("web")["memActualBytes"] == bytes);
    };
    let squeeze = |lab: &Lab, bytes: u64| {
        let socket = lab.runtime("web", "control.sock");
        runtime.block_on(async {
            let mut client = Client::connect(&socket).await.unwrap();
            client.command(Command::SetMemory { bytes }).await.unwrap();
        });
        has(lab, bytes);
    };
    squeeze(&lab, 192 << 20);
    let supervisor = lab.supervisor(first).id().cast_signed();
    signal(supervisor, SIGKILL);
    assert_eq!(lab.exit_code(first), None);
    lab.run("web");
    has(&lab, 192 << 20);
    squeeze(&lab, 256 << 20);
}
