//! Parses the text of a VM file to a [`Vm`].

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

/// Parses the text of a VM file, without I/O except `user_data`, which reads the file of
/// `userData`. `file` is used in messages and to resolve relative paths.
///
/// # Errors
/// Every problem of the file, in its order. If the text is not TOML, only problems that are certain
/// in spite of the syntax errors.
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
        let hint = "write `[image]` with the source of the disk, or `vcpu = 1` if the disk \
            already exists";
        r.file("the file is empty", Some(hint.into()));
    }
    Vm::take(r, name, file, top, user_data)
}

/// Returns every key of VM files by its path, such as `disk.NAME.size`, as requested by the parser.
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

/// Returns the hint for an unknown `key` in the table at `table` with the keys `known`.
fn unknown_key(table: &str, key: &str, known: &[&str]) -> String {
    unknown::hint(keys(), table, key, known)
}
