//! The settings of a host, for all of its VMs: `qvm.toml` beside the directory of the VM files.

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

/// All settings of a host; the defaults where there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    /// The file, whether or not it is there.
    pub file: PathBuf,
    /// `reserveMem`: what of the host's memory guests do not get; unless written, by how much there is.
    pub reserve_mem: Option<Size>,
    /// `admission`.
    pub admission: Admission,
    /// `uidRange`: the user ids that QEMUs run as.
    pub uid_range: UidRange,
}

/// Whether a file is a host's settings by where it is: `qvm.toml` with a directory `vms` beside it.
pub fn is_host_settings(file: &Path) -> bool {
    let beside = file.parent().map(|dir| dir.join("vms"));
    file.file_name().is_some_and(|name| name == HostSettings::FILE)
        && beside.is_some_and(|vms| vms.is_dir())
}

impl HostSettings {
    /// The file's name.
    pub const FILE: &'static str = "qvm.toml";

    /// The settings of a host without a file.
    pub fn absent(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            reserve_mem: None,
            admission: Admission::default(),
            uid_range: UidRange::default(),
        }
    }

    /// Reads the file; none is all defaults.
    ///
    /// # Errors
    /// Every problem of the file; or why it could not be read.
    pub fn load(file: &Path) -> Result<Self, Invalid> {
        let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
        if fs::symlink_metadata(file).is_err_and(|error| gone(&error)) {
            return Ok(Self::absent(file));
        }
        let bytes = bytes(file, file)?;
        let text = String::from_utf8(bytes).map_err(|error| not_text(file, &error))?;
        Self::read(file, &text).map_err(Invalid)
    }

    /// Reads the text of such a file; touches nothing.
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

/// An amount of memory that may be nothing: text with a unit, or a whole number of MiB.
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
        let message = format!("{number} MiB is no amount of memory");
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
    fn each_key_and_no_file() {
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
    fn everything_wrong_is_told_at_once_with_the_way_out() {
        let text = "reserveMem = \"2GB\"\nadmision = \"of\"\nadmission = \"of\"\nuidRange = \"0-10\"\nmem = 1\nbridge = 1\nx = 1\n";
        let expected = "\
error: /etc/qvm/qvm.toml:1:14: reserveMem: `2GB` is not a size: `GB` could mean 1000s or 1024s; write `2G`, which means 1024s
 1 | reserveMem = \"2GB\"
   |              ^^^^^
error: /etc/qvm/qvm.toml:2:1: admision: unknown key
 2 | admision = \"of\"
   | ^^^^^^^^
hint: did you mean `admission`?
error: /etc/qvm/qvm.toml:3:13: admission: `of` is not known: write one of `\"refuse\"`, `\"wait\"`, `\"off\"`
 3 | admission = \"of\"
   |             ^^^^
hint: did you mean `\"off\"`?
error: /etc/qvm/qvm.toml:4:12: uidRange: `0-10` begins below 1000, where root and the system's accounts are
 4 | uidRange = \"0-10\"
   |            ^^^^^^
error: /etc/qvm/qvm.toml:5:1: mem: unknown key
 5 | mem = 1
   | ^^^
hint: `mem` belongs in the files of VMs, in `vms/` beside this file
error: /etc/qvm/qvm.toml:6:1: bridge: unknown key
 6 | bridge = 1
   | ^^^^^^
hint: `bridge` belongs in the files of VMs, in `vms/` beside this file
error: /etc/qvm/qvm.toml:7:1: x: unknown key
 7 | x = 1
   | ^
hint: here can be: admission, reserveMem, uidRange";
        assert_eq!(read(text).unwrap_err(), expected);
    }

    #[test]
    fn no_text_and_no_file_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("qvm.toml");
        assert!(!is_host_settings(&file));
        fs::create_dir(dir.path().join("vms")).unwrap();
        assert!(is_host_settings(&file));
        fs::write(&file, b"admission = \"\xff\"").unwrap();
        let told = HostSettings::load(&file).unwrap_err().to_string();
        assert!(told.contains("it is not UTF-8 text"), "{told}");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let told = HostSettings::load(&file).unwrap_err().to_string();
        assert!(told.contains("it is a directory, not a file"), "{told}");
    }
}
