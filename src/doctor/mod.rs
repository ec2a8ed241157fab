//! What is wrong with the host and its VM files.

pub mod collect;
pub mod probe;
pub mod rules;
