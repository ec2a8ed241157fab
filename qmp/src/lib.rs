//! An async client for QMP and the QEMU guest agent, typed over `qapi`'s schema, with a transport of its own.
//!
//! Calls carry ids, so many may be under way; each has a deadline, and a reply that comes later is dropped. An event or
//! an enum value that is newer than the schema is kept as it came. A peer that closes is reported at once.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod agent;
mod client;
mod commands;
mod devices;
mod error;
mod event;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod line;
mod outlet;
mod viewers;

pub use client::{COMMAND_QUEUE, Client, EVENT_QUEUE, Events, Greeting, Session, connect, over};
pub use commands::{Balloon, Block, Migration};
pub use error::Error;
pub use event::{Event, Kind, ShutdownReason};
pub use line::{Line, MAX_LINE, parse};
