//! Floor 4: one supervisor: prepare, launch, adopt, supervise.

pub mod ask_down;
pub mod begin;
pub mod console;
pub mod disk;
pub mod fetch;
pub mod image;
pub mod image_cache;
mod intake;
pub mod inventory;
pub mod progress;
