//! systemd: notifications, units, machined and the journal.

pub mod journal;
pub mod machined;
pub mod notify;
pub mod registration;
pub mod service;
pub mod unit;
pub mod unit_mounts;
pub(crate) mod unit_sandbox;
