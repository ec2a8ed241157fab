//! Network interfaces of the host, by rtnetlink(7).

pub(crate) mod counters;
pub(crate) mod error;
pub(crate) mod links;

pub use self::links::{Attached, Link, Links};
pub use self::{
    counters::{Counters, Traffic},
    error::Error,
};
