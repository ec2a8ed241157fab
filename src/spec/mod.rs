//! The VM file as written, typed and valid by construction.
//!
//! One source file for each table. Parsing collects all problems of a file instead of stopping at
//! the first; a [`Vm`] has no problems.

pub mod check;
mod choice;
mod cloud_init;
mod disk;
mod disk_limits;
mod display;
mod file;
mod host_settings;
mod image;
pub mod known;
mod lookalike;
mod machine;
mod nearest;
mod nic;
mod parse;
mod problem;
mod reading;
mod ready;
pub mod reference;
mod ssh_key;
mod syntax;
mod table;
mod text;
mod unknown;
mod user_data;
pub mod vm_file;
mod written;
mod yaml;

pub use self::choice::{
    Accel, Admission, Bus, Cache, Clone, Firmware, Format, HostShutdown, Isolation, LinkState,
    Media, Model, OnGuestReboot, OnPanic, ReadyFailure, SectorSize, TapHeal,
};
pub use self::cloud_init::CloudInit;
pub use self::disk::{Disk, Source};
pub use self::disk_limits::{DiskLimits, LIMIT_KINDS, Limit, LimitKind, amount};
pub use self::display::Display;
pub use self::file::{
    files_in, load, load_all, load_early, load_in_place, load_with_text, name_of,
};
pub use self::host_settings::{HostSettings, is_host_settings};
pub use self::image::{Checksum, Image, Origin};
pub use self::machine::Vm;
pub use self::nic::{AntiSpoof, Link, Nic};
pub use self::parse::{keys, read};
pub use self::problem::{Invalid, Problem};
pub use self::ready::{Reach, Ready};
pub use self::user_data::{Note as UserDataNote, UserData};
