//! Floor 1: the VM file as written, typed and valid by construction.
//!
//! One file a table: what it holds and what it may say. Reading collects every problem of a file
//! instead of stopping at the first; whoever has a [`Vm`] has one without problems.

pub mod check;
mod choice;
mod cloud_init;
mod disk;
mod display;
mod file;
mod host_settings;
mod image;
pub mod known;
mod lookalike;
mod machine;
mod nic;
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

use std::{collections::BTreeSet, io, path::Path, sync::LazyLock};

use toml::de::DeTable;

pub use self::choice::{
    Accel, Admission, Firmware, HostShutdown, Isolation, OnGuestReboot, OnPanic, TapHeal,
};
pub use self::cloud_init::CloudInit;
pub use self::disk::{Bus, Clone, Disk, Format, Media, Source};
pub use self::display::Display;
pub use self::file::{
    files_in, load, load_all, load_early, load_in_place, load_with_text, name_of,
};
pub use self::host_settings::{HostSettings, is_host_settings};
pub use self::image::{Checksum, Image, Origin};
pub use self::machine::Vm;
pub use self::nic::{AntiSpoof, Link, LinkState, Model, Nic};
pub use self::problem::{Invalid, Problem};
pub use self::ready::{Reach, Ready, ReadyFailure};
pub use self::user_data::{Note as UserDataNote, UserData};

use self::reading::{At, Reading};
use self::table::Table;
use crate::value::VmName;

/// Reads the text of a VM file; touches nothing. `file` is what relative paths are resolved against and what
/// messages name; `user_data` reads the file that `userData` names.
///
/// # Errors
/// Every problem of the file, in its order. Where the text is no TOML, only what is certain in spite of that.
pub fn read(
    name: &VmName,
    file: &Path,
    text: &str,
    user_data: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Result<Vm, Vec<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut r = Reading::new(file, text);
    let vm = take(&mut r, name, file, text, user_data);
    match r.is_good() {
        true => Ok(vm),
        false => Err(r.into_problems()),
    }
}

fn take(
    r: &mut Reading<'_>,
    name: &VmName,
    file: &Path,
    text: &str,
    user_data: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Vm {
    let (table, errors) = DeTable::parse_recoverable(text);
    crate::spec::syntax::report(r, text, table.get_ref(), &errors);
    let at = At { key: String::new(), span: 0..0 };
    let top = Table::new(at, table.into_inner());
    if top.is_empty() && errors.is_empty() {
        let hint = "write `[image]` and what the disk is made from, or `vcpu = 1` if the disk is there already";
        r.file("nothing is written in it", Some(hint.into()));
    }
    Vm::take(r, name, file, top, user_data)
}

/// Every key that a VM file can have, by its path, such as `disk.NAME.size`; as the reader itself asks for them.
pub fn keys() -> &'static BTreeSet<String> {
    static KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let text = "[cpu]\n[image]\n[cloudInit]\n[display]\n[disk.x.image]\n[nic.x]\n";
        let file = Path::new("x.toml");
        let mut r = Reading::new(file, text);
        if let Ok(name) = "x".parse() {
            take(&mut r, &name, file, text, &mut |_| Ok(Vec::new()));
        }
        let general = |path: String| match path.split_once(".x.") {
            Some((table, key)) => format!("{table}.NAME.{key}"),
            None => path,
        };
        r.asked.into_iter().map(general).collect()
    });
    &KEYS
}
