//! Whole sessions with a QEMU that answers what it likes: replies in any order, refusals and events between them. Every command that qvm
//! gives ends, a reply comes to none but the call that it is of, and no event that matters is lost.

use std::{collections::VecDeque, time::Duration};

use qmp::{Client, Error, Kind};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

/// By the session's own clock, which stands still while there is work to do.
const LIMIT: Duration = Duration::from_secs(60);
const NEVER: Duration = Duration::from_secs(36_000);

/// Each line is something that QEMU says, by its first letter: `r` the reply to the oldest call, `R` to the newest one, `e` a refusal of the
/// oldest, `d` a second reply to a call that was answered, `v` an event, and anything else as it is.
pub fn check(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let session = tokio::time::timeout(NEVER, session(bytes));
        session.await.expect("a session with a peer that has closed ends");
    });
}

async fn session(bytes: &[u8]) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let peer = tokio::spawn(qemu(theirs, bytes.to_vec()));
    let Ok(mut session) = qmp::over(ours, LIMIT).await else { return };
    let client = session.client.clone();
    let listen = async {
        let mut heard = 0;
        while let Some(event) = session.events.next().await {
            heard += usize::from(matches!(event.kind(), Kind::Shutdown { .. }));
        }
        heard
    };
    let ((), heard) = tokio::join!(calls(&client), listen);
    let said = peer.await.expect("a peer that ends");
    assert_eq!(heard, said, "of the events that matter");
}

/// Says a line for each call that comes, and what is left behind the last; the number of shutdowns that it told of.
async fn qemu(stream: DuplexStream, bytes: Vec<u8>) -> usize {
    let mut stream = BufReader::new(stream);
    let greeting = format!("{}\r\n", qmp::fake::GREETING);
    if stream.write_all(greeting.as_bytes()).await.is_err() {
        return 0;
    }
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let (mut asked, mut answered) = (VecDeque::<Value>::new(), Value::Null);
    let (mut shutdowns, mut calls) = (0, 0);
    loop {
        let mut call = String::new();
        // Once nobody asks any more, the rest is said at once.
        let more = tokio::time::timeout(Duration::from_secs(1), stream.read_line(&mut call)).await;
        match more {
            Ok(Ok(1..)) => {
                let call: Value = serde_json::from_str(&call).expect("a call is JSON");
                asked.push_back(call["id"].clone());
                calls += 1;
            }
            Ok(_) => return shutdowns,
            Err(_) => {}
        }
        let said = match calls {
            // `qmp_capabilities`.
            1 => Some(&b"r{}"[..]),
            _ => lines.next(),
        };
        let Some(said) = said else { return shutdowns };
        let (kind, text) = said.split_first().unwrap_or((&b' ', b""));
        let value: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
        let id = match kind {
            b'r' | b'e' => asked.pop_front(),
            b'R' => asked.pop_back(),
            _ => None,
        };
        let line = match (kind, id) {
            (b'r' | b'R', Some(id)) => {
                answered = id.clone();
                json!({ "return": tagged(value, &id), "id": id }).to_string().into_bytes()
            }
            (b'e', Some(id)) => json!({ "error": value, "id": id }).to_string().into_bytes(),
            (b'd', _) => json!({ "return": value, "id": answered }).to_string().into_bytes(),
            (b'v', _) => {
                let event = json!({ "event": value["event"], "data": value["data"] }).to_string();
                let read = qmp::parse(event.as_bytes());
                let is = |kind| matches!(kind, Kind::Shutdown { .. });
                shutdowns +=
                    usize::from(matches!(read, Some(qmp::Line::Event(event)) if is(event.kind())));
                event.into_bytes()
            }
            _ => continue,
        };
        if stream.write_all(&[&line, &b"\r\n"[..]].concat()).await.is_err() {
            return shutdowns;
        }
    }
}

/// An object says which call it is an answer to.
fn tagged(mut value: Value, id: &Value) -> Value {
    if let Value::Object(object) = &mut value {
        object.insert("call".into(), id.clone());
    }
    value
}

/// Three at once that are told apart by their replies, and then one of each.
async fn calls(client: &Client) {
    let echo = async |name: &str| client.raw(name, json!({}), LIMIT).await;
    let (a, b, c) = tokio::join!(echo("query-a"), echo("query-b"), echo("query-c"));
    let ids: Vec<Value> = [a, b, c]
        .into_iter()
        .flatten()
        .map(|told| told["call"].clone())
        .filter(|id| !id.is_null())
        .collect();
    assert!(ids.iter().enumerate().all(|(nr, id)| !ids[..nr].contains(id)), "one reply, two calls");
    let _ = tokio::join!(client.query_status(LIMIT), client.query_balloon(LIMIT));
    let _ = client.migration(LIMIT).await;
    let _ = client.blocks(LIMIT).await;
    let _ = client.vcpu_threads(LIMIT).await;
    let _ = client.devices(LIMIT).await;
    if let Ok(bus) = client.bus_of("disk0", LIMIT).await {
        assert!(!bus.contains('/'), "{bus}");
    }
    let _ = client.node_size("disk0", LIMIT).await;
    let _ = client.user_network(LIMIT).await;
    let nothing: [Result<(), Error>; 12] = [
        client.cont(LIMIT).await,
        client.stop(LIMIT).await,
        client.powerdown(LIMIT).await,
        client.reset(LIMIT).await,
        client.set_reboot_action("shutdown", LIMIT).await,
        client.balloon(1, LIMIT).await,
        client.set_link("net0", true, LIMIT).await,
        client.add_device(json!({}), LIMIT).await,
        client.remove_device("x", LIMIT).await,
        client.press(&["a".to_owned()], Duration::from_millis(1), LIMIT).await,
        client.cancel_migration(LIMIT).await,
        client.quit(LIMIT).await,
    ];
    for error in nothing.into_iter().filter_map(Result::err) {
        let failure = qvm::cli::exit::Failure::from_error(&error);
        super::is_tame(&failure.shown(qvm::cli::table::Screen::default()));
    }
}
