//! Any bytes from whoever listens at a control socket: every call of the client ends, and what it makes of them drives no terminal.

use std::{cell::RefCell, path::PathBuf, time::Duration};

use qvm::{
    cli::{exit::Failure, table::Screen},
    control::{
        client::{Client, Error},
        types::Command,
    },
    value::Explain,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    runtime::Runtime,
};

/// By the true clock: the peer is in this process, and closes behind its bytes.
const SOON: Duration = Duration::from_secs(5);

struct Place {
    runtime: Runtime,
    listener: UnixListener,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(place());
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = { runtime.block_on(async { UnixListener::bind(&socket) }) }.expect("a socket");
    Place { runtime, listener, socket, _dir: dir }
}

/// The first byte chooses what is asked; the rest is what comes.
pub fn check(bytes: &[u8]) {
    let Some((&choice, said)) = bytes.split_first() else { return };
    PLACE.with_borrow(|place| {
        let peer = async {
            let (mut stream, _) = place.listener.accept().await.expect("a caller");
            let mut call = [0; 4096];
            let _ = stream.read(&mut call).await;
            let _ = stream.write_all(said).await;
        };
        let both = async { tokio::join!(ask(place.socket.clone(), choice), peer) };
        let ended = place.runtime.block_on(async { tokio::time::timeout(SOON, both).await });
        let (failed, ()) = ended.expect("a call ends when its peer has closed");
        if let Err(error) = failed {
            super::is_tame(
                &Failure::from_error(&error).hint(error.hint()).shown(Screen::default()),
            );
        }
    });
}

async fn ask(socket: PathBuf, choice: u8) -> Result<(), Error> {
    let mut client = Client::connect(&socket).await?;
    match choice % 12 {
        0 => client.status(SOON).await.map(drop),
        1 => client.command(Command::Pause).await,
        2 => client.recent_events().await.map(drop),
        3 => client.statistics(SOON).await.map(drop),
        4 => client.guest().await.map(drop),
        5 => client.exec(vec!["true".into()], SOON).await.map(drop),
        6 => client.agent("guest-info", json!({}), SOON).await.map(drop),
        7 => client.freeze(SOON).await.map(drop),
        8 => client.thaw().await.map(drop),
        // Bytes alone bring no descriptor.
        9 => client.screenshot().await.map(|_| panic!("a picture out of nothing")),
        10 => client.console(true, 0).await.map(|_| panic!("a console out of nothing")),
        _ => {
            let mut watch = client.watch().await?;
            while watch.next().await.is_some() {}
            Ok(())
        }
    }
}
