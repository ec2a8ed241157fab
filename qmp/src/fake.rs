//! A scripted peer: what it expects, what it answers, how it misbehaves. For tests of whoever talks to QEMU.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// One thing the peer does.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Reads a command and holds it to this name.
    Expect(&'static str),
    /// Answers the newest command that was read.
    Return(Value),
    /// Refuses the newest command that was read.
    Refuse(&'static str, &'static str),
    /// Answers the command that was read so many before the newest: a late reply.
    ReturnLate(usize, Value),
    /// Says these bytes as they are.
    Say(Vec<u8>),
    /// Waits until the other side has closed.
    AwaitClose,
    /// Closes the connection.
    Close,
}

/// The greeting of QEMU 10.0.2.
pub const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"}, "capabilities": ["oob"]}}"#;

/// The turns of a peer that greets and takes `qmp_capabilities`.
pub fn greeted() -> Vec<Turn> {
    vec![line(GREETING), Turn::Expect("qmp_capabilities"), Turn::Return(serde_json::json!({}))]
}

/// Says one line.
pub fn line(text: &str) -> Turn {
    Turn::Say(format!("{text}\r\n").into_bytes())
}

/// Plays the script over `stream` and gives the commands that were read. Panics, as an assertion does, when the other side
/// does not keep to it.
#[allow(clippy::panic, clippy::missing_panics_doc)]
pub async fn play<S: AsyncRead + AsyncWrite + Unpin>(stream: S, script: Vec<Turn>) -> Vec<Value> {
    let mut stream = BufReader::new(stream);
    let mut read: Vec<Value> = vec![];
    for turn in script {
        let said = match turn {
            Turn::Expect(name) => {
                let mut text = String::new();
                let count = stream.read_line(&mut text).await.unwrap_or(0);
                assert!(count > 0, "the other side closed where `{name}` was expected");
                let Ok(command) = serde_json::from_str::<Value>(&text) else {
                    panic!("not JSON: {text}")
                };
                assert_eq!(command["execute"], name, "in {text}");
                read.push(command);
                continue;
            }
            Turn::Return(value) => answer(&read, 0, "return", value),
            Turn::ReturnLate(back, value) => answer(&read, back, "return", value),
            Turn::Refuse(class, desc) => {
                answer(&read, 0, "error", serde_json::json!({ "class": class, "desc": desc }))
            }
            Turn::Say(bytes) => bytes,
            Turn::AwaitClose => {
                let _ = stream.read_to_end(&mut vec![]).await;
                continue;
            }
            Turn::Close => break,
        };
        if stream.get_mut().write_all(&said).await.is_err() {
            break;
        }
    }
    read
}

fn answer(read: &[Value], back: usize, kind: &str, value: Value) -> Vec<u8> {
    let id = read.len().checked_sub(1 + back).and_then(|at| read.get(at)).map(|c| c["id"].clone());
    let mut answer = serde_json::json!({ kind: value });
    if let Some(id) = id.filter(|id| !id.is_null()) {
        answer["id"] = id;
    }
    format!("{answer}\r\n").into_bytes()
}
