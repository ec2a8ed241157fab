//! Any bytes from a guest's agent, which the guest's owner may have replaced: no panic, and the call ends.
#![no_main]

use std::{cell::RefCell, time::Duration};

use libfuzzer_sys::fuzz_target;
use qmp::agent::Agent;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    runtime::Runtime,
};

const SYNC: u32 = 7;
/// The peer closes behind its bytes, so that no call has to wait this long.
const LIMIT: Duration = Duration::from_secs(5);

struct Place {
    runtime: Runtime,
    listener: UnixListener,
    agent: Agent,
    _dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(place());
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("agent.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = { runtime.block_on(async { UnixListener::bind(&socket) }) }.expect("a socket");
    Place { runtime, listener, agent: Agent::new(socket), _dir: dir }
}

fuzz_target!(|bytes: &[u8]| {
    PLACE.with_borrow(|place| place.runtime.block_on(one(place, bytes)));
});

/// The first byte chooses: garbage from the start, or behind a proper sync.
async fn one(place: &Place, bytes: &[u8]) {
    let Some((&choice, said)) = bytes.split_first() else { return };
    let peer = async {
        let (mut stream, _) = place.listener.accept().await.expect("a caller");
        if choice & 1 == 1 {
            let _ = stream.write_all(&[0xff]).await;
            let _ = stream.write_all(format!("{{\"return\": {SYNC}}}\n").as_bytes()).await;
        }
        let _ = stream.write_all(said).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut vec![]).await;
    };
    let call = async {
        match choice >> 1 & 1 {
            0 => drop(place.agent.call("guest-info", json!({}), SYNC, LIMIT).await),
            _ => drop(place.agent.shutdown(SYNC, LIMIT).await),
        }
    };
    let begun = std::time::Instant::now();
    tokio::join!(peer, call);
    assert!(begun.elapsed() < LIMIT, "waited for a peer that has closed");
}
