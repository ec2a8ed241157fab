//! An async client for QMP and the QEMU guest agent, typed by the schema of `qapi`, with its own
//! transport.
//!
//! Calls have ids, so many can be pending; each has a deadline, and a late reply is discarded.
//! Events and enum values that are newer than the schema are preserved. The end of a connection is
//! reported immediately.

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
