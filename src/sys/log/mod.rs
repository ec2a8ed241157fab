//! TODO head of sys/log.

pub mod file;
pub mod reader;
pub mod text;

