//! Floor 4: one supervisor. It prepares, launches or adopts, and then supervises one QEMU until it ends.

use std::path::PathBuf;

use crate::{
    host::network::Network,
    plan::{
        layout::{Layout, VmPaths},
        unit::Scope,
    },
    value::VmName,
};

mod act;
pub mod addresses;
mod admission;
pub mod adopt;
pub mod ask_down;
pub mod begin;
pub mod carry;
pub mod console;
mod console_log;
pub mod disk;
pub mod doctor;
pub mod door;
pub mod edited;
mod effects;
mod enrol;
pub mod error;
mod fact;
pub mod fetch;
mod file_reading;
pub mod force_off;
mod forwards;
mod freeze;
mod hear;
pub mod holder;
pub mod identities;
pub mod identity_lock;
pub mod image;
pub mod image_cache;
pub mod in_guest;
mod input;
mod intake;
pub mod inventory;
// It says what runs between fork and exec.
#[allow(unsafe_code)]
pub mod isolate;
pub mod kept;
mod lane;
pub mod launch;
pub mod left_behind;
mod live;
pub mod liveness;
pub mod metrics;
mod monitor;
mod operators;
mod plug;
pub mod prepare;
pub mod previous;
pub mod progress;
pub mod rates;
mod ready;
pub mod record;
mod record_writer;
mod report;
mod reread;
mod reservation;
mod resources;
mod room;
pub mod saved;
mod screen;
pub mod service;
mod set_out;
pub mod shares;
mod statistics;
pub mod supervise;
mod suspend;
mod taps;
mod tasks;
pub mod usage;
pub mod viewer;
pub mod within_reach;

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
    pub(in crate::run) async fn shut_off(&self) -> bool {
        self.network.is_empty(&self.root.join("proc")).await
    }

    /// What a new identity is made of.
    pub fn means(&self) -> identities::Means {
        let Self { layout, host_id, uuid, .. } = self.clone();
        identities::Means { layout, host_id, uuid }
    }
}
