//! The NoCloud seed.

pub mod documents;
pub mod iso9660;
