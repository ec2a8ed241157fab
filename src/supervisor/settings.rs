//! The settings of a supervisor.

use std::path::PathBuf;

use crate::{
    net::broker::Network,
    store::layout::{Layout, VmPaths},
    systemd::unit::Scope,
    value::VmName,
};

/// The settings of a supervisor, with its sources of time, randomness and environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directories of VM files, state and sockets.
    pub layout: Layout,
    /// The VM.
    pub name: VmName,
    /// The QEMU to run; `None` searches `search_path`.
    pub qemu: Option<std::ffi::OsString>,
    /// `PATH`.
    pub search_path: Option<std::ffi::OsString>,
    /// `$XDG_CONFIG_HOME` of an unprivileged user, for firmware descriptors.
    pub config_home: Option<PathBuf>,
    /// The parent of `/dev`, `/sys` and `/proc`; `/` except in tests.
    pub root: PathBuf,
    /// The machine-id(5) of the host, for stable MAC addresses.
    pub host_id: String,
    /// The systemd manager of the VM's unit.
    pub scope: Scope,
    /// The source of taps and sockets in the host's network.
    pub network: Network,
    /// The varlink socket of systemd-machined; `None` without registration.
    pub machined: Option<PathBuf>,
    /// Returns a new random UUID.
    pub uuid: fn() -> String,
    /// Returns the time of day.
    pub now: fn() -> jiff::Timestamp,
    /// Returns an environment variable of the service manager.
    pub env: fn(&str) -> Option<String>,
}

impl Settings {
    /// Returns the paths of the VM.
    pub fn paths(&self) -> VmPaths {
        self.layout.vm(&self.name)
    }

    /// Whether this process is in an empty network namespace.
    pub(crate) async fn shut_off(&self) -> bool {
        self.network.is_empty(&self.root.join("proc")).await
    }

    /// Returns the source of new identities.
    pub fn identity_source(&self) -> crate::store::identity_store::IdentitySource {
        let Self { layout, host_id, uuid, .. } = self.clone();
        crate::store::identity_store::IdentitySource { layout, host_id, uuid }
    }
}
