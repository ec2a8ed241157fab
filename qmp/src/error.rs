//! The errors of calls.

use std::{io, path::PathBuf, time::Duration};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Cannot connect to the socket.
    #[error("cannot connect to `{}`", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The peer closed the connection; QEMU does so when it ends.
    #[error("the monitor connection is closed")]
    Closed,
    /// The command queue is full: the peer does not read.
    #[error("cannot send `{command}`: {waiting} commands are waiting for the peer to read them")]
    QueueFull {
        /// The command that was not sent.
        command: String,
        /// The number of queued commands.
        waiting: usize,
    },
    /// The deadline expired.
    #[error("no reply to `{command}` within {limit:?}")]
    Timeout {
        /// The command.
        command: String,
        /// The time limit.
        limit: Duration,
    },
    /// A program in the guest has not exited within the limit.
    #[error("`{program}` did not exit within {limit:?} and is still running")]
    Unfinished {
        /// Its name.
        program: String,
        /// The time limit.
        limit: Duration,
    },
    /// The peer refused the command.
    #[error("`{command}` was refused: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QMP's error class, such as `GenericError` or `DeviceNotActive`.
        class: String,
        /// The description from the peer.
        desc: String,
    },
    /// The reply does not match the schema.
    #[error("cannot parse the reply to `{command}`")]
    Reply {
        /// The command.
        command: String,
        /// The difference.
        source: serde_json::Error,
    },
    /// The command cannot be encoded as JSON.
    #[error("cannot write `{command}` as JSON")]
    Encode {
        /// The command.
        command: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// The peer is not QMP.
    #[error("the peer is not QMP: its first line is `{0}`")]
    NotQmp(String),
}
