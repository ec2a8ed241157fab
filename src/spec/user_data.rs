//! `cloudInit.userData`: a file that is copied unchanged into the seed, and its checks.
//!
//! The checks follow cloud-init, which detects the format by the first characters
//! (<https://docs.cloud-init.io/en/latest/explanation/format.html>). Other programs also read
//! NoCloud seeds, so files that cloud-init would ignore are accepted with a note.

use std::{fmt, io::Read, path::PathBuf};

use super::{
    reading::{At, Reading},
    text, yaml,
};
use crate::value::{self, NoteCode, shown};

/// A function that reads a file named by a VM file.
pub(super) type ReadFile<'r> = dyn FnMut(&std::path::Path) -> std::io::Result<Vec<u8>> + 'r;

/// A user-data file, read together with the VM file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserData {
    /// The file, absolute, resolved against the VM file's directory.
    pub path: PathBuf,
    /// The content: UTF-8 text, or gzip of it.
    pub bytes: Vec<u8>,
    /// Notes about possible mistakes.
    pub notes: Vec<Note>,
}

/// A property of user-data that may be a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A machine configuration of Talos Linux.
    Talos,
    /// A script for cloudbase-init, which reads NoCloud seeds on Windows.
    CloudbaseInit,
    /// An Ignition configuration.
    Ignition,
    /// An unknown format.
    Unknown,
    /// A mapping of `#cloud-config` contains this key twice; PyYAML uses the last one.
    DuplicateKey {
        /// The key.
        key: String,
        /// The line of the second occurrence, if found.
        line: Option<usize>,
    },
}

impl Note {
    /// Returns the line in the user-data.
    fn line(&self) -> Option<usize> {
        match self {
            Self::DuplicateKey { line, .. } => *line,
            _ => None,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Talos => {
                write!(f, "is a machine configuration of Talos Linux, which cloud-init ignores")
            }
            Self::CloudbaseInit => write!(
                f,
                "is a script for cloudbase-init, which cloud-init \
                ignores"
            ),
            Self::Ignition => write!(
                f,
                "is an Ignition configuration: images with `ignition.platform.id=proxmoxve` read \
                 it \
                 from the seed; others read it from fw_cfg, which qvm does not support"
            ),
            Self::Unknown => {
                write!(f, "has an unknown format, which cloud-init ignores")
            }
            Self::DuplicateKey { key, .. } => {
                write!(f, "contains the key `{}` twice; cloud-init uses the last one", shown(key))
            }
        }
    }
}

impl UserData {
    /// The maximum size of user-data, in bytes.
    pub const MAX: usize = 1 << 20;

    /// Returns the notes with file and line.
    pub fn advice(&self) -> impl Iterator<Item = value::Note> {
        let path = super::problem::one_line(&self.path.to_string_lossy());
        self.notes.iter().map(move |note| {
            let place = note.line().map(|line| format!(":{line}")).unwrap_or_default();
            value::Note::new(NoteCode::UserData, format!("`{path}{place}` {note}"))
                .key("cloudInit.userData")
        })
    }

    pub(super) fn load(
        r: &mut Reading<'_>,
        at: &At,
        path: &str,
        read: &mut ReadFile<'_>,
    ) -> Option<Self> {
        let path = text::path(r, at, path)?;
        let shown_path = super::problem::one_line(&path.to_string_lossy());
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                r.wrong(at, format!("cannot read `{shown_path}`: {error}"), None);
                return None;
            }
        };
        if bytes.len() > Self::MAX {
            r.wrong(at, format!("`{shown_path}` is larger than 1 MiB"), None);
            return None;
        }
        match check(&bytes) {
            Ok(notes) => Some(Self { path, bytes, notes }),
            Err((line, message, hint)) => {
                let place = line.map(|line| format!(":{line}")).unwrap_or_default();
                r.wrong(at, format!("`{shown_path}{place}` {message}"), hint);
                None
            }
        }
    }
}

/// The first characters of user-data formats, in lower case, except `#cloud-config`.
const HEADERS: [&str; 10] = [
    "#!",
    "#include",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    "#part-handler",
    "#upstart-job",
    "## template: jinja",
    "content-type:",
    "mime-version:",
];

/// The first characters of scripts for cloudbase-init, in lower case.
const CLOUDBASE: [&str; 4] = ["#ps1", "rem cmd", "<powershell>", "<script>"];

/// Keys that identify a `#cloud-config` without its first line.
const COMMON_KEYS: [&str; 26] = [
    "apt",
    "bootcmd",
    "ca_certs",
    "chpasswd",
    "disk_setup",
    "final_message",
    "fqdn",
    "fs_setup",
    "groups",
    "growpart",
    "hostname",
    "locale",
    "mounts",
    "ntp",
    "package_update",
    "package_upgrade",
    "packages",
    "password",
    "power_state",
    "runcmd",
    "ssh_authorized_keys",
    "ssh_pwauth",
    "timezone",
    "user",
    "users",
    "write_files",
];

/// Line, message and hint of a problem.
type Flaw = (Option<usize>, String, Option<String>);

/// Checks user-data without cloud-init: its header, and that a `#cloud-config` is a mapping.
fn check(bytes: &[u8]) -> Result<Vec<Note>, Flaw> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return check_packed(bytes);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => check_text(text),
        Err(_) => Err((None, "is neither UTF-8 text nor gzip".into(), None)),
    }
}

/// Checks the decompressed content of gzip, up to a size limit and not recursively.
fn check_packed(bytes: &[u8]) -> Result<Vec<Note>, Flaw> {
    let most = 4 * UserData::MAX;
    let mut unpacked = Vec::new();
    let mut from = flate2::read::MultiGzDecoder::new(bytes).take(most as u64 + 1);
    if let Err(error) = from.read_to_end(&mut unpacked) {
        return Err((None, format!("is gzip that cannot be decompressed: {error}"), None));
    }
    match String::from_utf8(unpacked) {
        Ok(text) if text.len() <= most => check_text(&text),
        Ok(_) => Ok(vec![]),
        Err(_) => Err((None, "is gzip of something that is not UTF-8 text".into(), None)),
    }
}

fn check_text(text: &str) -> Result<Vec<Note>, Flaw> {
    let start: String = text.trim_start().chars().take(64).collect::<String>().to_ascii_lowercase();
    let head: String = text.chars().take(4096).collect::<String>().to_ascii_lowercase();
    if HEADERS.iter().any(|header| start.starts_with(header)) || head.contains("mime-version:") {
        return Ok(vec![]);
    }
    if start.starts_with("#cloud-config") {
        return check_config(text);
    }
    if start.is_empty() {
        return Err((None, "is empty".into(), None));
    }
    if start.starts_with("# cloud-config") {
        let hint = "write `#cloud-config` without the space";
        return Err((Some(1), "begins with a comment".into(), Some(hint.into())));
    }
    let has = |key: &str| text.lines().any(|line| line.trim_end() == key);
    let begins = |keys: &[&str]| {
        let key = |line: &str| line.split_once(':').is_some_and(|(key, _)| keys.contains(&key));
        text.lines().any(key)
    };
    if CLOUDBASE.iter().any(|header| start.starts_with(header)) {
        Ok(vec![Note::CloudbaseInit])
    } else if (has("version: v1alpha1") && begins(&["machine", "cluster"]))
        || (has("apiVersion: v1alpha1") && begins(&["kind"]))
    {
        Ok(vec![Note::Talos])
    } else if is_ignition(text) {
        Ok(vec![Note::Ignition])
    } else if begins(&COMMON_KEYS) {
        let message = "contains keys of a `#cloud-config` but does not begin with this \
            line"
            .to_owned();
        Err((Some(1), message, Some("write `#cloud-config` as its first line".into())))
    } else {
        Ok(vec![Note::Unknown])
    }
}

fn is_ignition(text: &str) -> bool {
    // Avoids parsing text that is not a JSON object.
    text.trim_start().starts_with('{')
        && serde_json::from_str::<serde_json::Value>(text)
            .is_ok_and(|json| json.get("ignition").is_some_and(serde_json::Value::is_object))
}

fn check_config(text: &str) -> Result<Vec<Note>, Flaw> {
    if is_deep(text) {
        return Ok(vec![]);
    }
    match yaml::outline(text) {
        Ok(outline) if !outline.is_mapping => {
            Err((None, "is not a mapping of keys to values".into(), None))
        }
        Ok(outline) => {
            let line = |key: &String| yaml::second_line(text, key);
            let note = |key: String| Note::DuplicateKey { line: line(&key), key };
            Ok(outline.duplicates.into_iter().take(MOST_NOTES).map(note).collect())
        }
        Err(error) => {
            let line = error.location().map(|location| location.line());
            let error = super::problem::one_line(&error.to_string());
            Err((line, format!("is not YAML: {error}"), None))
        }
    }
}

/// The maximum number of reported duplicate keys.
const MOST_NOTES: usize = 5;

/// Returns true if brackets are nested so deeply that libyaml, which examines each open one for
/// each token, would take minutes. Scripts with unbalanced brackets also match, so the check is
/// skipped for such text.
fn is_deep(text: &str) -> bool {
    let mut open = 0_u32;
    text.bytes().any(|byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > 256
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gz(text: &str) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        to.write_all(text.as_bytes()).unwrap();
        to.finish().unwrap()
    }

    #[test]
    fn formats_of_other_programs_get_a_note() {
        for (text, note) in [
            ("version: v1alpha1\nmachine:\n  type: worker\n---\nkind: x\n", Note::Talos),
            ("apiVersion: v1alpha1\nkind: HostnameConfig\nhostname: n1\n", Note::Talos),
            ("#ps1_sysnative\nSet-TimeZone -Id UTC\n", Note::CloudbaseInit),
            ("rem cmd\r\necho x\r\n", Note::CloudbaseInit),
            ("{\"ignition\":{\"version\":\"3.4.0\"}}", Note::Ignition),
            ("hello\n", Note::Unknown),
        ] {
            assert_eq!(check(text.as_bytes()), Ok(vec![note.clone()]), "{text}");
            assert_eq!(check(&gz(text)), Ok(vec![note]), "{text}");
        }
    }

    #[test]
    fn cloud_init_formats_are_accepted() {
        for text in [
            "#cloud-config # for a test\npackages: [htop]\n",
            "\n  #Cloud-Config\nruncmd: []\n",
            "#cloud-config-archive\n- content: x\n",
            "#cloud-config\r\nruncmd: []\r\n",
            "From: x\nMIME-Version: 1.0\n",
            "#!/bin/sh\n",
        ] {
            assert_eq!(check(text.as_bytes()), Ok(vec![]), "{text}");
            assert_eq!(check(&gz(text)), Ok(vec![]), "{text}");
        }
    }

    #[test]
    fn invalid_user_data_is_refused() {
        let packed = gz("#cloud-config\n");
        for bytes in [
            b"packages: [htop]\n".as_slice(),
            b"#cloud-config\n- a\n",
            b"#cloud-config # x\na: [\n",
            b"",
            b" \n",
            b"# cloud-config\npackages: [htop]\n",
            b"\xff\xfe",
            &packed[..packed.len() - 4],
            &gz("#cloud-config\n- a\n"),
        ] {
            assert!(check(bytes).is_err(), "{bytes:?} was accepted");
        }
    }

    #[test]
    fn duplicate_key_is_reported_at_second_line() {
        let duplicates = |text: &str| {
            let notes = check(text.as_bytes()).unwrap().into_iter();
            let pair = |note| match note {
                Note::DuplicateKey { key, line } => (key, line),
                other => panic!("{other:?}"),
            };
            notes.map(pair).collect::<Vec<_>>()
        };
        let top = "#cloud-config\nruncmd:\n  - echo one\npackages: [htop]\nruncmd:\n  - echo two\n";
        assert_eq!(duplicates(top), [("runcmd".to_owned(), Some(5))]);
        let nested = "#cloud-config\nusers:\n- name: a\n- name: b\n  \"uid\": 1\n  uid: 2\n";
        assert_eq!(duplicates(nested), [("uid".to_owned(), Some(6))]);
        let in_block = "#cloud-config\na: |\n  a: 1\nb: 2\na: 3\n";
        assert_eq!(duplicates(in_block), [("a".to_owned(), Some(5))]);
        let flow = "#cloud-config\nx: {a: 1, a: 2}\n";
        assert_eq!(duplicates(flow), [("a".to_owned(), None)]);
        assert_eq!(duplicates("#cloud-config\na: {b: 1}\nc: {b: 2}\n"), []);
        let merged = "#cloud-config\na: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n";
        assert_eq!(duplicates(merged), []);
    }
}
