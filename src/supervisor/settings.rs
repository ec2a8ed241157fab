//! What a supervisor is given by its caller.

use std::path::PathBuf;

use crate::{
    net::broker::Network,
    store::layout::{Layout, VmPaths},
    systemd::unit::Scope,
    value::VmName,
};

/// What a supervisor is told by whoever starts it: time, randomness and environment come from here.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The three directories.
    pub layout: Layout,
    /// The VM.
    pub name: VmName,
    /// The QEMU to run; `None` looks for it in `search_path`.
    pub qemu: Option<std::ffi::OsString>,
    /// `PATH`.
    pub search_path: Option<std::ffi::OsString>,
    /// `$XDG_CONFIG_HOME` of a plain user, where firmware descriptors of his own may be.
    pub config_home: Option<PathBuf>,
    /// Where `/dev`, `/sys` and `/proc` are; `/` but in tests.
    pub root: PathBuf,
    /// What tells this host from others (machine-id(5)), for stable MAC addresses.
    pub host_id: String,
    /// Whose service manager would run us.
    pub scope: Scope,
    /// Where the descriptors of the host's network come from.
    pub network: Network,
    /// Where systemd-machined serves varlink, if VMs are to be registered there.
    pub machined: Option<PathBuf>,
    /// A new random UUID.
    pub uuid: fn() -> String,
    /// The time of day.
    pub now: fn() -> jiff::Timestamp,
    /// Environment variables of the service manager.
    pub env: fn(&str) -> Option<String>,
}

impl Settings {
    /// The VM's own paths.
    pub fn paths(&self) -> VmPaths {
        self.layout.vm(&self.name)
    }

    /// Whether what is started here is in a network with nothing in it.
    pub(crate) async fn shut_off(&self) -> bool {
        self.network.is_empty(&self.root.join("proc")).await
    }

    /// What a new identity is made of.
    pub fn means(&self) -> crate::store::identity_store::IdentitySource {
        let Self { layout, host_id, uuid, .. } = self.clone();
        crate::store::identity_store::IdentitySource { layout, host_id, uuid }
    }
}
