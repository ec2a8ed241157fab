//! One supervisor: one loop around one QEMU.

pub(crate) mod actions;
pub(crate) mod config;
pub(crate) mod dispatch;
pub(crate) mod effects;
pub mod error;
pub(crate) mod file_reading;
pub(crate) mod input;
pub(crate) mod qemu_events;
pub(crate) mod requests;
pub mod running;
pub mod settings;
pub mod start;
pub(crate) mod start_events;
pub mod supervise;
