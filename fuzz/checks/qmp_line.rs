//! Any bytes from QEMU's monitor: no panic, every call ends, and the event receiver ends when the
//! peer has closed.

use std::time::Duration;

use qmp::fake::GREETING;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// By the paused clock of the session.
const LIMIT: Duration = Duration::from_secs(60);
/// More than all limits of the calls below together.
const NEVER: Duration = Duration::from_secs(3600);

pub fn check(bytes: &[u8]) {
    if let Some(line) = bytes.split(|byte| *byte == b'\n').next() {
        let _ = qmp::parse(line);
    }
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let session = tokio::time::timeout(NEVER, session(bytes));
        session.await.expect("a session with a peer that has closed ends");
    });
}

/// The first byte selects whether the bytes follow a valid greeting. The rest is sent in small
/// parts.
async fn session(bytes: &[u8]) {
    let Some((&choice, said)) = bytes.split_first() else { return };
    // Single bytes are slow for long input.
    let least = if said.len() < 300 { 1 } else { 64 };
    let (ours, theirs) = tokio::io::duplex(least + usize::from(choice >> 1) * 4);
    let mut text = Vec::new();
    if choice & 1 == 1 {
        text = format!("{GREETING}\r\n{{\"return\": {{}}, \"id\": 0}}\r\n").into_bytes();
    }
    text.extend_from_slice(said);
    let (mut from_us, mut to_us) = tokio::io::split(theirs);
    tokio::spawn(async move { from_us.read_to_end(&mut vec![]).await });
    tokio::spawn(async move {
        let _ = to_us.write_all(&text).await;
        let _ = to_us.shutdown().await;
    });
    let Ok(mut session) = qmp::over(ours, LIMIT).await else { return };
    let client = session.client.clone();
    let calls = async {
        let _ = tokio::join!(
            client.query_status(LIMIT),
            client.query_balloon(LIMIT),
            client.raw("query-block", json!({}), LIMIT),
            client.cont(LIMIT),
        );
    };
    let listen = async {
        let (mut count, most) = (0, said.iter().filter(|byte| **byte == b'\n').count());
        while let Some(event) = session.events.next().await {
            let _ = event.kind();
            count += 1;
        }
        assert!(count <= most, "more events than lines");
    };
    tokio::join!(calls, listen);
}
