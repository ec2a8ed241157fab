//! What belongs to one running QEMU.

pub mod console;
pub(crate) mod console_log;
pub(crate) mod disk_space;
pub(crate) mod freeze;
pub(crate) mod hotplug;
pub(crate) mod live_update;
pub(crate) mod machined;
pub(crate) mod operators;
pub(crate) mod qmp_watchdog;
pub(crate) mod ready;
pub(crate) mod resources;
pub(crate) mod screen;
pub(crate) mod statistics;
pub(crate) mod suspend;
pub mod taps;
pub mod viewer;
pub mod vnc_listener;
