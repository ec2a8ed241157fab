//! The settings of a host: `qvm.toml` beside the directory of the VM files.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    choice::Admission,
    file::{bytes, not_text},
    problem::{Invalid, Problem},
    reading::{At, Reading},
    syntax,
    table::Table,
    unknown,
    written::{Refusal, Written, whole},
};
use crate::value::{Size, UidRange};

/// All settings of a host; defaults if the file does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// The path of the file, which need not exist.
    pub file: PathBuf,
    /// `reserveMem`: the memory that guests may not use; `None` means a part of the host's memory.
    pub reserve_mem: Option<Size>,
    /// `admission`.
    pub admission: Admission,
    /// `uidRange`: the UIDs for QEMU processes.
    pub uid_range: UidRange,
}

/// Returns true if the path is that of a settings file: `qvm.toml` beside a directory `vms`.
pub fn is_host_settings(file: &Path) -> bool {
    let beside = file.parent().map(|dir| dir.join("vms"));
    file.file_name().is_some_and(|name| name == HostSettings::FILE)
        && beside.is_some_and(|vms| vms.is_dir())
}

impl HostSettings {
    /// The file's name.
    pub const FILE: &'static str = "qvm.toml";

    /// Returns the settings of a host without a file.
    pub fn absent(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            reserve_mem: None,
            admission: Admission::default(),
            uid_range: UidRange::default(),
        }
    }

    /// Reads the file; returns defaults if it does not exist.
    ///
    /// # Errors
    /// Every problem of the file, or why it cannot be read.
    pub fn load(file: &Path) -> Result<Self, Invalid> {
        let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        if fs::symlink_metadata(file).is_err_and(|error| gone(&error)) {
            return Ok(Self::absent(file));
        }
        let bytes = bytes(file, file)?;
        let text = String::from_utf8(bytes).map_err(|error| not_text(file, &error))?;
        Self::read(file, &text).map_err(Invalid)
    }

    /// Parses the text of a settings file, without I/O.
    ///
    /// # Errors
    /// Every problem of the text, in its order.
    pub fn read(file: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut r = Reading::new(file, text, unknown_key);
        let (table, errors) = DeTable::parse_recoverable(text);
        syntax::report(&mut r, text, table.get_ref(), &errors);
        let at = At { key: String::new(), span: 0..0 };
        let mut top = Table::new(at, table.into_inner());
        let settings = Self {
            file: file.to_owned(),
            reserve_mem: top.take(&mut r, "reserveMem").value.map(|Reserve(size)| size),
            admission: top.take(&mut r, "admission").value.unwrap_or_default(),
            uid_range: top.take(&mut r, "uidRange").value.unwrap_or_default(),
        };
        top.finish(&mut r);
        match r.is_good() {
            true => Ok(settings),
            false => Err(r.into_problems()),
        }
    }
}

fn unknown_key(_: &str, key: &str, known: &[&str]) -> String {
    unknown::host_hint(super::parse::keys(), key, known)
}

/// An amount of memory, possibly 0: a string with a unit, or a whole number of MiB.
struct Reserve(Size);

impl Written for Reserve {
    const WANTED: &'static str = "a string such as `\"2G\"`, or a whole number of MiB";
    const PLURAL: &'static str = "sizes";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        if let Some(text) = value.as_str() {
            return Ok(Self(text.parse()?));
        }
        let number = whole(value)?;
        let size = u64::try_from(number).ok().and_then(Size::from_mib);
        let message = format!("{number} MiB is not an amount of memory");
        size.map(Self).ok_or(Refusal::Value { message, hint: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HostSettings, String> {
        let read = HostSettings::read(Path::new("/etc/qvm/qvm.toml"), text);
        read.map_err(|problems| Invalid(problems).to_string())
    }

    #[test]
    fn keys_and_missing_file_are_parsed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("qvm.toml");
        let absent = HostSettings::absent(&file);
        assert_eq!(HostSettings::load(&file), Ok(absent.clone()));
        assert_eq!(absent.admission, Admission::Refuse);
        fs::write(&file, "# nothing yet\n").unwrap();
        assert_eq!(HostSettings::load(&file), Ok(absent));
        let text = "reserveMem = \"2G\"\nadmission = \"wait\"\nuidRange = \"100000-165535\"\n";
        let all = read(text).unwrap();
        assert_eq!(all.reserve_mem, Some(Size::from_bytes(2 << 30)));
        assert_eq!(all.admission, Admission::Wait);
        assert!(all.uid_range.contains(165_535));
        for none in ["reserveMem = 0", "reserveMem = \"0M\""] {
            assert_eq!(read(none).unwrap().reserve_mem, Some(Size::from_bytes(0)));
        }
    }

    #[test]
    fn all_problems_are_reported_with_hints() {
        let text = "reserveMem = \"2GB\"\nadmision = \"of\"\nadmission = \"of\"\n\
            uidRange = \"0-10\"\nmem = 1\nbridge = 1\nx = 1\n";
        let expected = "\
error: /etc/qvm/qvm.toml:1:14: reserveMem: `2GB` is not a size: `GB` is ambiguous; \
    write `2G`, which uses powers of 1024
 1 | reserveMem = \"2GB\"
   |              ^^^^^
error: /etc/qvm/qvm.toml:2:1: admision: unknown key
 2 | admision = \"of\"
   | ^^^^^^^^
hint: did you mean `admission`?
error: /etc/qvm/qvm.toml:3:13: admission: `of` is not known: \
    write one of `\"refuse\"`, `\"wait\"`, `\"off\"`
 3 | admission = \"of\"
   |             ^^^^
hint: did you mean `\"off\"`?
error: /etc/qvm/qvm.toml:4:12: uidRange: `0-10` begins below 1000: \
    these UIDs are root and system accounts
 4 | uidRange = \"0-10\"
   |            ^^^^^^
error: /etc/qvm/qvm.toml:5:1: mem: unknown key
 5 | mem = 1
   | ^^^
hint: `mem` belongs in VM files, in the directory `vms/` beside this file
error: /etc/qvm/qvm.toml:6:1: bridge: unknown key
 6 | bridge = 1
   | ^^^^^^
hint: `bridge` belongs in VM files, in the directory `vms/` beside this file
error: /etc/qvm/qvm.toml:7:1: x: unknown key
 7 | x = 1
   | ^
hint: valid keys are: admission, reserveMem, uidRange";
        assert_eq!(read(text).unwrap_err(), expected);
    }

    #[test]
    fn unreadable_files_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("qvm.toml");
        assert!(!is_host_settings(&file));
        fs::create_dir(dir.path().join("vms")).unwrap();
        assert!(is_host_settings(&file));
        fs::write(&file, b"admission = \"\xff\"").unwrap();
        let told = HostSettings::load(&file).unwrap_err().to_string();
        assert!(told.contains("the file is not UTF-8 text"), "{told}");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let told = HostSettings::load(&file).unwrap_err().to_string();
        assert!(told.contains("this is a directory, not a regular file"), "{told}");
    }
}
