//! A scripted QMP peer for tests: expected commands, replies and misbehavior.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// One step of the script.
#[derive(Debug, Clone)]
pub enum Turn {
    /// Reads a command and checks its name.
    Expect(&'static str),
    /// Replies to the last command.
    Return(Value),
    /// Refuses the last command.
    Refuse(&'static str, &'static str),
    /// Replies to an earlier command, counted back from the last: a late reply.
    ReturnLate(usize, Value),
    /// Sends these bytes.
    Say(Vec<u8>),
    /// Waits until the client has closed the connection.
    AwaitClose,
    /// Closes the connection.
    Close,
}

/// The greeting of QEMU 10.0.2.
pub const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"}, "#,
    r#""capabilities": ["oob"]}}"#,
);

/// Returns the steps of the greeting and `qmp_capabilities`.
pub fn greeted() -> Vec<Turn> {
    vec![line(GREETING), Turn::Expect("qmp_capabilities"), Turn::Return(serde_json::json!({}))]
}

/// Sends one line.
pub fn line(text: &str) -> Turn {
    Turn::Say(format!("{text}\r\n").into_bytes())
}

/// Plays the script over `stream` and returns the commands read. Panics if the client deviates from
/// the script.
#[allow(clippy::panic, clippy::missing_panics_doc)]
pub async fn play<S: AsyncRead + AsyncWrite + Unpin>(stream: S, script: Vec<Turn>) -> Vec<Value> {
    let mut stream = BufReader::new(stream);
    let mut read: Vec<Value> = vec![];
    for turn in script {
        let said = match turn {
            Turn::Expect(name) => {
                let mut text = String::new();
                let count = stream.read_line(&mut text).await.unwrap_or(0);
                assert!(count > 0, "the client closed the connection instead of sending `{name}`");
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
