//! Tests the client with a real QEMU without a guest, from the greeting to `quit`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use qmp::{Balloon, Error, Events, Kind, Session, ShutdownReason};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

/// A QEMU process that ends with the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts QEMU with stopped vCPUs; `None` if it is neither installed nor required.
async fn qemu(dir: &Path) -> Option<(Qemu, Session)> {
    let socket = dir.join("qmp");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "tcg"]);
    command.args(["-machine", "q35", "-m", "32", "-device", "virtio-balloon-pci"]);
    command.args(["-action", "reboot=reset,shutdown=pause", "-qmp"]);
    command.arg(format!("unix:{},server=on,wait=off", socket.display()));
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let required = std::env::var("QVM_TEST_REQUIRE").is_ok_and(|all| all.contains("qemu"));
    let Ok(child) = spawned else {
        assert!(!required, "QEMU is not installed");
        println!("skipped: no QEMU");
        return None;
    };
    let qemu = Qemu(child);
    // The socket exists before QEMU listens on it.
    let connected = async {
        loop {
            match qmp::connect(&socket, LIMIT).await {
                Err(qmp::Error::Connect { .. }) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                connected => return connected.unwrap(),
            }
        }
    };
    Some((qemu, tokio::time::timeout(LIMIT, connected).await.expect("QEMU never listens")))
}

async fn wait_for(events: &mut Events, wanted: &Kind) {
    let seen = async {
        while let Some(event) = events.next().await {
            if event.kind() == *wanted {
                return;
            }
        }
        panic!("QEMU went without {wanted:?}");
    };
    tokio::time::timeout(LIMIT, seen).await.expect("the event never came");
}

#[tokio::test]
async fn from_the_greeting_to_quit() {
    let dir = tempfile::tempdir().unwrap();
    let Some((mut qemu, session)) = qemu(dir.path()).await else { return };
    let Session { client, mut events, greeting } = session;
    assert!(greeting.version >= (7, 2, 0), "{greeting:?}");
    assert_eq!(client.query_status(LIMIT).await.unwrap(), "prelaunch");
    client.cont(LIMIT).await.unwrap();
    wait_for(&mut events, &Kind::Resume).await;
    client.stop(LIMIT).await.unwrap();
    wait_for(&mut events, &Kind::Stop).await;
    assert_eq!(client.query_status(LIMIT).await.unwrap(), "paused");
    client.cont(LIMIT).await.unwrap();
    client.reset(LIMIT).await.unwrap();
    let reason = ShutdownReason::HostQmpSystemReset;
    wait_for(&mut events, &Kind::Reset { guest: false, reason: reason.clone() }).await;
    client.set_reboot_action("shutdown", LIMIT).await.unwrap();
    client.reset(LIMIT).await.unwrap();
    wait_for(&mut events, &Kind::Shutdown { guest: false, reason }).await;
    client.quit(LIMIT).await.unwrap();
    assert!(qemu.0.wait().unwrap().success());
    assert!(matches!(client.query_status(LIMIT).await, Err(Error::Closed)));
}

#[tokio::test]
async fn refusals_have_qemus_description() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_qemu, session)) = qemu(dir.path()).await else { return };
    let client = session.client;
    for (name, arguments, said) in [
        ("no-such-command", json!({}), "no-such-command"),
        ("device_del", json!({"id": "nobody"}), "nobody"),
        ("balloon", json!({"value": "much"}), "value"),
    ] {
        let refused = client.raw(name, arguments, LIMIT).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
    // Without a guest there is no driver.
    let balloon = client.query_balloon(LIMIT).await.unwrap();
    assert_eq!(balloon, Balloon::Actual(32 << 20));
    let many = (0..64).map(|_| client.query_status(LIMIT));
    for status in many {
        assert_eq!(status.await.unwrap(), "prelaunch");
    }
}

#[tokio::test]
async fn killed_qemu_is_reported_immediately() {
    let dir = tempfile::tempdir().unwrap();
    let Some((mut qemu, session)) = qemu(dir.path()).await else { return };
    let Session { client, mut events, .. } = session;
    qemu.0.kill().unwrap();
    while events.next().await.is_some() {}
    assert!(matches!(client.cont(LIMIT).await, Err(Error::Closed)));
}
