//! The guest agent: commands, file copies and readiness.

pub(crate) mod agent;
pub(crate) mod copy;
pub(crate) mod error;
pub(crate) mod exec;
pub mod readiness;

pub use self::agent::Guest;
pub use self::copy::{Local, copy_in, copy_out};
pub use self::error::Error;
pub use self::exec::{Streams, exec};
