//! The settings of a supervisor from the environment of this process.

use std::path::PathBuf;

use super::{
    dirs::{dir, system},
    invocation::Invocation,
};
use crate::{
    net::broker::Network,
    store::{identity_store::IdentitySource, layout::Layout},
    supervisor::settings::Settings,
    sys::machine_id,
    systemd::{registration, unit::Scope},
    value::VmName,
};

/// The variable that names the socket of the network broker, set in units with a private network
/// namespace.
const NETWORK: &str = "QVM_NETWORK";

/// Returns the settings of a supervisor.
pub(super) fn settings(name: VmName, layout: Layout, invocation: &Invocation<'_>) -> Settings {
    let machined =
        (invocation.uid == 0 && layout == system()).then(|| PathBuf::from(registration::SOCKET));
    Settings {
        layout,
        name,
        machined,
        scope: if invocation.uid == 0 { Scope::System } else { Scope::User },
        qemu: (invocation.env)("QVM_QEMU").filter(|qemu| !qemu.is_empty()),
        search_path: (invocation.env)("PATH"),
        config_home: config_home(invocation),
        network: match (invocation.env)(NETWORK) {
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

/// Returns the sources of new identities.
pub(super) fn identity_source(layout: Layout) -> IdentitySource {
    IdentitySource { layout, host_id: machine_id::read(), uuid: new_uuid }
}

fn new_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Returns the configuration directory of an unprivileged user.
pub(super) fn config_home(invocation: &Invocation<'_>) -> Option<PathBuf> {
    let home = || Some(PathBuf::from((invocation.env)("HOME")?).join(".config"));
    let found = || dir(invocation.env, "XDG_CONFIG_HOME").or_else(home);
    (invocation.uid != 0).then(found).flatten()
}

/// The current time in milliseconds.
fn milliseconds() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
