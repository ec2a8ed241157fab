//! Why a call did not succeed.

use std::{io, path::PathBuf, time::Duration};

/// The ways in which a call fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens there.
    #[error("cannot connect to `{}`", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The peer closed the connection; QEMU does so when it ends.
    #[error("the monitor's connection is closed")]
    Closed,
    /// So many commands wait already for a peer that does not read them.
    #[error("cannot send `{command}`: {waiting} commands are waiting for the peer to read them")]
    QueueFull {
        /// The command that was not sent.
        command: String,
        /// The number of commands that wait.
        waiting: usize,
    },
    /// The deadline passed.
    #[error("no reply to `{command}` within {limit:?}")]
    Timeout {
        /// What was asked.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// A program that the agent runs in the guest takes longer than it may.
    #[error("`{program}` did not end within {limit:?}, and goes on")]
    Unfinished {
        /// Its name.
        program: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The peer said no.
    #[error("`{command}` was refused: {desc}")]
    Refused {
        /// What was asked.
        command: String,
        /// QMP's error class, such as `GenericError` or `DeviceNotActive`.
        class: String,
        /// The peer's own words.
        desc: String,
    },
    /// The reply is not what the schema says.
    #[error("cannot read the reply to `{command}`")]
    Reply {
        /// What was asked.
        command: String,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// The call cannot be written as JSON.
    #[error("cannot write `{command}` as JSON")]
    Encode {
        /// What was to be asked.
        command: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Whatever answers there, it is not QMP.
    #[error("the peer does not speak QMP: it began with `{0}`")]
    NotQmp(String),
}
