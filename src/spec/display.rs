//! `[display]`: a screen for the guest, and who may look at it.

use std::path::PathBuf;

use super::{
    reading::{Key, Reading},
    table::Table,
    text,
};
use crate::value::VncAddress;

/// The table. Without it the guest has no screen, only its serial console.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Display {
    /// `vnc`: where the screen is served; `None` is nowhere: it can be photographed, and typed at.
    pub vnc: Option<VncAddress>,
    /// `passwordFile`: the password for a TCP port, which VNC cuts to eight characters.
    pub password_file: Option<PathBuf>,
}

impl Display {
    /// Takes `[display]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>) -> Self {
        let vnc: Key<VncAddress> = table.take(r, "vnc");
        let file: Key<String> = table.take(r, "passwordFile");
        table.finish(r);
        match (vnc.good(), &file.at) {
            (Some((at, VncAddress::Tcp(_))), None) => {
                let hint = "write `passwordFile = …`, or `vnc = \"unix\"`, which only root and the group `qvm` may open";
                let message =
                    "every user of this host can reach a TCP port, so it needs a password";
                r.refuse(at, message, Some(hint.into()));
            }
            (Some((_, VncAddress::Unix)) | None, Some(at))
                if vnc.at.is_none() || vnc.value.is_some() =>
            {
                let hint =
                    "leave it out, or serve the screen at a port: `vnc = \"127.0.0.1:5901\"`";
                r.refuse(at, "a password is for a TCP port only", Some(hint.into()));
            }
            _ => {}
        }
        Self {
            vnc: vnc.value,
            password_file: file.good().and_then(|(at, path)| text::path(r, at, path)),
        }
    }
}
