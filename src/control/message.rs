//! Varlink's wire: JSON objects that end with a NUL (varlink.org, "Method Call").

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

/// The largest message, in bytes; a status with all its ends has a few thousand, a guest's output may have more.
pub const MAX_MESSAGE: usize = 64 << 20;
/// The largest call that a server reads: what asks is small.
pub const MAX_CALL: usize = 1 << 20;

/// A call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// `INTERFACE.METHOD`.
    pub method: String,
    /// Its parameters.
    #[serde(default)]
    pub parameters: Value,
    /// The caller takes more than one reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// The caller takes no reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// The connection becomes something else behind the reply.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub upgrade: bool,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// What it brings.
    #[serde(default)]
    pub parameters: Value,
    /// More replies follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The name of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The next message without its NUL; `None` at the end, at a failure, or where it is longer than `most`.
pub async fn read<R: AsyncBufRead + Unpin>(reader: &mut R, most: usize) -> Option<Vec<u8>> {
    let mut message = vec![];
    loop {
        let available = reader.fill_buf().await.ok().filter(|bytes| !bytes.is_empty())?;
        let end = available.iter().position(|byte| *byte == 0);
        let taken = end.map_or(available.len(), |at| at + 1);
        message.extend_from_slice(&available[..taken]);
        reader.consume(taken);
        if end.is_some() {
            message.pop();
            return Some(message);
        }
        if message.len() > most {
            return None;
        }
    }
}

/// Writes a message with its NUL.
///
/// # Errors
/// The other side has gone.
pub async fn write<W: AsyncWrite + Unpin, T: Serialize>(
    writer: &mut W,
    message: &T,
) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    writer.write_all(&bytes).await
}
