//! Why an identity cannot be read, chosen or written.

use super::identity_lock;
use crate::{
    sys::file,
    value::{ErrorCode, Explain, UidRange, VmName},
};

/// Why an identity cannot be read, chosen or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// identity.toml is invalid.
    #[error("cannot read `{path}`")]
    Content {
        /// The file.
        path: String,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// All UIDs of the range are in use.
    #[error("no free UID in `uidRange` {}-{}", .0.first(), .0.last())]
    NoUser(UidRange),
    /// The UID of another VM is unknown.
    #[error("cannot determine the user of the VM `{0}`, which may be running")]
    UnknownUser(VmName),
    /// The identity cannot be encoded.
    #[error("cannot write the identity as TOML")]
    Encode(#[from] toml::ser::Error),
    /// Another process changes identities.
    #[error(transparent)]
    Lock(#[from] identity_lock::Error),
}

impl Error {
    /// Returns true if the operation was canceled.
    pub fn is_canceled(&self) -> bool {
        matches!(self, Self::Lock(identity_lock::Error::Canceled))
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            Self::Lock(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Content { .. } => ErrorCode::IdentityInvalid,
            Self::NoUser(..) => ErrorCode::NoFreeUid,
            Self::UnknownUser(..) => ErrorCode::UidUnknown,
            Self::Encode(..) => ErrorCode::InternalError,
            Self::File(..) | Self::Lock(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Content { .. } => Some(
                "the file contains the UUID, the MAC addresses and the machine type of this VM: \
                 restore it from a backup, or remove it to generate new ones"
                    .into(),
            ),
            Self::NoUser(_) => Some("enlarge `uidRange` in the host settings".into()),
            Self::UnknownUser(name) => Some(format!("`qvm status {name}` shows the reason")),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::UnknownUser(_))
    }
}
