//! Any bytes from a guest's agent, which the guest's owner may have replaced: no panic, every call ends, and what it says drives no
//! terminal.

use std::{cell::RefCell, time::Duration};

use qmp::{Error, agent::Agent};
use qvm::cli::{exit::Failure, table::Screen};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    runtime::Runtime,
};

const SYNC: u32 = 7;
/// By a clock that stands still while there is work to do.
const LIMIT: Duration = Duration::from_secs(5);
/// What a call may take by the true clock: its peer is in the same process, and closes behind its bytes.
const SOON: Duration = Duration::from_secs(5);

struct Place {
    runtime: Runtime,
    listener: UnixListener,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(place());
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("agent.sock");
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().start_paused(true).build().expect("a runtime");
    let listener = { runtime.block_on(async { UnixListener::bind(&socket) }) }.expect("a socket");
    Place { runtime, listener, socket, _dir: dir }
}

/// The first byte chooses: garbage from the start, or behind a proper sync; and what is asked. The rest is what the agent says, to the
/// first that calls; who calls again is hung up on.
pub fn check(bytes: &[u8]) {
    let begun = std::time::Instant::now();
    PLACE.with_borrow(|place| place.runtime.block_on(one(place, bytes)));
    assert!(begun.elapsed() < SOON, "waited for a peer that has closed");
}

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
        drop(stream);
        while place.listener.accept().await.is_ok() {}
    };
    let agent = Agent::new(place.socket.clone());
    tokio::select! {
        biased;
        () = call(&agent, choice >> 1) => {}
        () = peer => {}
    }
}

async fn call(agent: &Agent, choice: u8) {
    let failed = match choice % 8 {
        0 => agent.call("guest-info", json!({}), SYNC, LIMIT).await.err(),
        1 => agent.shutdown(SYNC, LIMIT).await.err(),
        2 => agent.ping(SYNC, LIMIT).await.err(),
        3 => agent.set_time(1, SYNC, LIMIT).await.err(),
        4 => agent.freeze(SYNC, LIMIT).await.err(),
        5 => agent.thaw(SYNC, LIMIT).await.err(),
        6 => addresses(agent).await.err(),
        _ => agent.exec(&["true".to_owned()], SYNC, LIMIT).await.err(),
    };
    if let Some(error) = failed {
        super::is_tame(&Failure::from_error(&error).shown(Screen::default()));
    }
}

async fn addresses(agent: &Agent) -> Result<(), Error> {
    for address in agent.addresses(SYNC, LIMIT).await? {
        assert!(!address.address.is_loopback(), "{address:?} is of no use");
    }
    Ok(())
}
