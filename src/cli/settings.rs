//! What of this process' surroundings a supervisor is told.

use std::path::PathBuf;

use super::{
    dirs::{dir, system},
    given::Given,
};
use crate::{
    net::broker::Network,
    store::{identity_store::IdentitySource, layout::Layout},
    supervisor::settings::Settings,
    sys::machine_id,
    systemd::{registration, unit::Scope},
    value::VmName,
};

/// The variable by which a unit with a network of its own says who lends it the host's.
const NETWORK: &str = "QVM_NETWORK";

/// What a supervisor is told.
pub(super) fn settings(name: VmName, layout: Layout, given: &Given<'_>) -> Settings {
    let machined =
        (given.uid == 0 && layout == system()).then(|| PathBuf::from(registration::SOCKET));
    Settings {
        layout,
        name,
        machined,
        scope: if given.uid == 0 { Scope::System } else { Scope::User },
        qemu: (given.env)("QVM_QEMU").filter(|qemu| !qemu.is_empty()),
        search_path: (given.env)("PATH"),
        config_home: config_home(given),
        network: match (given.env)(NETWORK) {
            Some(socket) if !socket.is_empty() => Network::lent(socket.into()),
            _ => Network::default(),
        },
        root: PathBuf::from("/"),
        host_id: machine_id::read(),
        uuid: new_uuid,
        now: milliseconds,
        env: |key| std::env::var(key).ok(),
    }
}

/// What new identities are made of.
pub(super) fn means(layout: Layout) -> IdentitySource {
    IdentitySource { layout, host_id: machine_id::read(), uuid: new_uuid }
}

fn new_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Where a plain user's configuration is.
pub(super) fn config_home(given: &Given<'_>) -> Option<PathBuf> {
    let home = || Some(PathBuf::from((given.env)("HOME")?).join(".config"));
    let found = || dir(given.env, "XDG_CONFIG_HOME").or_else(home);
    (given.uid != 0).then(found).flatten()
}

/// The time, to the millisecond: more is noise in what is kept and shown.
fn milliseconds() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
