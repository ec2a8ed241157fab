//! Floor 5: one verb of the command line, one file.

pub mod check;
pub mod image;
