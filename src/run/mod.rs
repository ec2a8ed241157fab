//! Floor 4: one supervisor: prepare, launch, adopt, supervise.

pub mod console;
