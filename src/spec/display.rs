//! `[display]`: the graphical screen of a guest and the access to it.

use std::path::PathBuf;

use super::{
    reading::{Key, Reading},
    table::Table,
    text,
};
use crate::value::VncAddress;

/// The table. Without it the guest has only its serial console.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Display {
    /// `vnc`: the address of the VNC server; `None` means no VNC: only screenshots and key presses.
    pub vnc: Option<VncAddress>,
    /// `passwordFile`: the password for a TCP port. VNC uses only its first eight characters.
    pub password_file: Option<PathBuf>,
}

impl Display {
    /// Parses `[display]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>) -> Self {
        let vnc: Key<VncAddress> = table.take(r, "vnc");
        let file: Key<String> = table.take(r, "passwordFile");
        table.finish(r);
        match (vnc.good(), &file.at) {
            (Some((at, VncAddress::Tcp(_))), None) => {
                let hint = "write `passwordFile = …`, or `vnc = \"unix\"`, to which only root and \
                    the group `qvm` can connect";
                let message = "a TCP port requires a password, since every user of this host can \
                    connect to it";
                r.refuse(at, message, Some(hint.into()));
            }
            (Some((_, VncAddress::Unix)) | None, Some(at))
                if vnc.at.is_none() || vnc.value.is_some() =>
            {
                let hint = "remove it, or use a TCP port: `vnc = \"127.0.0.1:5901\"`";
                r.refuse(at, "a password requires a TCP port", Some(hint.into()));
            }
            _ => {}
        }
        Self {
            vnc: vnc.value,
            password_file: file.good().and_then(|(at, path)| text::path(r, at, path)),
        }
    }
}
