//! Floor 5: one verb of the command line, one file.

pub mod image;
pub mod check;
