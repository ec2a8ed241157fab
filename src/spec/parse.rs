//! From the text of a VM file to a [`Vm`].

use std::{collections::BTreeSet, io, path::Path, sync::LazyLock};

use toml::de::DeTable;

use super::{
    machine::Vm,
    problem::Problem,
    reading::{At, Reading},
    syntax,
    table::Table,
    unknown,
};
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
    let mut r = Reading::new(file, text, unknown_key);
    let vm = take_vm(&mut r, name, file, text, user_data);
    match r.is_good() {
        true => Ok(vm),
        false => Err(r.into_problems()),
    }
}

fn take_vm(
    r: &mut Reading<'_>,
    name: &VmName,
    file: &Path,
    text: &str,
    user_data: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Vm {
    let (table, errors) = DeTable::parse_recoverable(text);
    syntax::report(r, text, table.get_ref(), &errors);
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
        let mut r = Reading::new(file, text, unknown_key);
        if let Ok(name) = "x".parse() {
            take_vm(&mut r, &name, file, text, &mut |_| Ok(Vec::new()));
        }
        let general = |path: String| match path.split_once(".x.") {
            Some((table, key)) => format!("{table}.NAME.{key}"),
            None => path,
        };
        r.asked.into_iter().map(general).collect()
    });
    &KEYS
}

/// The hint for an unknown `key` in the table at `table`, which knows `known`.
fn unknown_key(table: &str, key: &str, known: &[&str]) -> String {
    unknown::hint(keys(), table, key, known)
}
