//! Floor 1: the VM file as written, typed and valid by construction.
//!
//! One file a table: what it holds and what it may say. Reading collects every problem of a file
//! instead of stopping at the first; whoever has a [`Vm`] has one without problems.

mod cloud_init;
mod disk;
mod image;
mod machine;
mod nic;

pub use cloud_init::{CloudInit, UserData};
pub use disk::{Bus, Clone, Disk, Format, Media, Source};
pub use image::{Checksum, Image, Origin};
pub use machine::{Accel, Firmware, OnGuestReboot, OnPanic, Vm};
pub use nic::{Link, Model, Nic};
