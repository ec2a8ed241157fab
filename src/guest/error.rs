//! Why an operation in a guest failed.

use std::{io, time::Duration};

use crate::{
    control::client,
    sys::{file, session::SessionEnd},
    value::{ErrorCode, Explain},
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The supervisor or the agent returned an error.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The agent's answer has an unexpected format.
    #[error("cannot parse the guest agent's answer to `{0}`")]
    Answer(&'static str),
    /// A program in the guest failed.
    #[error("cannot {doing} in the guest: {stderr}")]
    Guest {
        /// The operation.
        doing: String,
        /// Its error output.
        stderr: String,
    },
    /// A file operation on the host failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// Standard input or output failed.
    #[error("cannot {0}")]
    Stream(&'static str, #[source] io::Error),
    /// The reader of the output is gone.
    #[error("the reader of the output has closed it")]
    NoReader,
    /// More data than this guest supports.
    #[error("{0}")]
    TooMuch(&'static str),
    /// The time limit was exceeded.
    #[error("`{program}` did not exit within {limit:?} and was ended")]
    TooLong {
        /// The program.
        program: String,
        /// The time limit.
        limit: Duration,
    },
    /// Ended by a signal.
    #[error("ended by signal {0}")]
    Interrupted(i32),
    /// The source is a directory.
    #[error("`{0}` is a directory")]
    Directory(String, String),
}

impl From<SessionEnd> for Error {
    fn from(vanished: SessionEnd) -> Self {
        match vanished {
            SessionEnd::NoReader => Self::NoReader,
            vanished => Self::Interrupted(vanished.signal()),
        }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Client(error) => Some(error),
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Answer(..) => ErrorCode::GuestReplyInvalid,
            Self::Guest { .. } => ErrorCode::GuestFailed,
            Self::Stream(_, source) => ErrorCode::of_io(source),
            Self::NoReader => ErrorCode::OutputFailed,
            Self::TooMuch(..) => ErrorCode::GuestLimit,
            Self::TooLong { .. } => ErrorCode::GuestTimeout,
            Self::Interrupted(..) => ErrorCode::Interrupted,
            Self::Directory(..) => ErrorCode::NotAFile,
            Self::Client(..) | Self::File(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Directory(_, hint) => Some(hint.clone()),
            Self::TooMuch(_) => Some(
                "the limit does not apply to a guest with `sh` and `mktemp` whose agent may open \
                 files"
                    .into(),
            ),
            _ => None,
        }
    }
}
