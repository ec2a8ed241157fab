//! The run record, from which a later supervisor adopts QEMU, and the last ten ends.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{intention::RecordedIntention, layout::VmPaths, liveness};
use crate::{
    control::{
        isolation::{Isolation, Layer},
        types::End,
    },
    sys::file,
    value::{Notes, chain},
};

/// The number of stored ends.
pub const ENDS: usize = 10;

/// The version of the run record that this program writes.
pub const VERSION: u32 = 1;

/// A run record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the run record `{}`", path.display())]
pub struct Unreadable {
    path: PathBuf,
    source: io::Error,
}

/// The running QEMU, in `/run/qvm/NAME/record.json`. Fields of a newer version are preserved when
/// the record is rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the record; 0 means that QEMU holds no liveness locks.
    #[serde(default)]
    pub version: u32,
    /// The PID of QEMU.
    pub pid: u32,
    /// Its start time in clock ticks since boot, from /proc/PID/stat; identifies a reused PID.
    pub start_time: u64,
    /// The boot ID of the host when QEMU was started.
    pub boot_id: String,
    /// When QEMU was started, RFC 3339.
    pub started_at: String,
    /// The version of QEMU.
    pub qemu_version: String,
    /// The machine type.
    pub machine: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// The tap of the first NIC.
    pub tap: Option<String>,
    /// The address of the first NIC.
    pub mac: Option<String>,
    /// The machine's UUID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Set while QEMU restores a saved state; the value is whether the vCPUs remain stopped
    /// afterwards.
    #[serde(default)]
    pub restoring: Option<bool>,
    /// Set while the state is being saved; the value is whether the vCPUs were stopped before.
    #[serde(default)]
    pub saving: Option<bool>,
    /// An operator has paused the guest.
    #[serde(default)]
    pub held: bool,
    /// When frozen file systems of the guest must be thawed, RFC 3339.
    #[serde(default)]
    pub frozen_until: Option<String>,
    /// Notes for the operator about the start.
    #[serde(flatten)]
    pub notes: Notes,
    /// The guest has been ready, or is no longer waited for. A record without this field is of a
    /// version that did not wait.
    #[serde(default = "yes")]
    pub ready: bool,
    /// Why the guest was not ready in time.
    #[serde(default)]
    pub missed: Option<String>,
    /// The changes of the running machine since its start, by key (`machine::diff::applied`); null
    /// for a removed key.
    #[serde(default)]
    pub applied: BTreeMap<String, Option<String>>,
    /// The path of the QEMU binary.
    #[serde(default)]
    pub binary: Option<PathBuf>,
    /// The identity of the QEMU binary, by `file::file_id`.
    #[serde(default)]
    pub binary_id: Option<(u64, u64, i64)>,
    /// The firmware file and its modification time in seconds since 1970.
    #[serde(default)]
    pub firmware: Option<(PathBuf, i64)>,
    /// The isolation of QEMU; a record without this field is of a version without isolation.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// The instance-id of cloud-init in the seed.
    #[serde(default)]
    pub instance: Option<String>,
    /// How the supervisor is ending QEMU; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intention: Option<RecordedIntention>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

fn yes() -> bool {
    true
}

/// The maximum size of a run record in bytes; a record has a few KiB.
const MOST: u64 = 1 << 20;

/// Reads a small regular file. A FIFO or a device at the path must neither block nor fill the
/// memory.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = Vec::new();
    if file.take(MOST + 1).read_to_end(&mut text)? as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
    }
    Ok(text)
}

impl Record {
    /// Returns the record of a VM; `None` if there is none.
    ///
    /// # Errors
    /// The record cannot be read, or does not identify a process.
    pub fn read(paths: &VmPaths) -> Result<Option<Self>, Unreadable> {
        let path = paths.record();
        let text = match read_regular(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Unreadable { path, source }),
        };
        match Self::parse(&text) {
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(Unreadable { path, source }),
        }
    }

    fn parse(text: &[u8]) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(text)?;
        // Earlier versions wrote these values if they could not determine them.
        if record.pid == 0 || record.start_time == 0 || record.boot_id.is_empty() {
            let why = "the record does not identify a process";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(record)
    }

    /// Returns true if QEMU has a private network namespace: only the passed descriptors are
    /// connected.
    pub fn has_private_network(&self) -> bool {
        self.isolation.as_ref().is_some_and(|isolation| isolation.has(Layer::Network))
    }

    /// Writes the record and a copy of the VM file from which QEMU was started.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, paths: &VmPaths, vm_file: &str) -> Result<(), file::Error> {
        file::write_volatile(&paths.booted(), vm_file.as_bytes(), 0o600)?;
        let _ = fs::remove_file(paths.reloaded());
        self.update(paths)
    }

    /// Writes only the record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn update(&self, paths: &VmPaths) -> Result<(), file::Error> {
        file::write_volatile(&paths.record(), json(self).as_bytes(), 0o640)
    }

    /// Removes the record and the sockets if QEMU is gone. If a process holds or may hold the
    /// liveness lock of the run directory, all files remain: the sockets are the only access to a
    /// running QEMU.
    ///
    /// The lock in the state directory is not probed: only files of the run directory are removed,
    /// and the storage of the state directory may hang.
    pub fn remove(paths: &VmPaths) {
        match liveness::held_runtime_lock(paths) {
            Ok(None) => {}
            Ok(Some(lock)) => {
                tracing::warn!("cannot remove the run record: `{}` is locked", lock.display());
                return;
            }
            Err(error) => {
                tracing::warn!("cannot remove the run record: {}", chain(&error));
                return;
            }
        }
        for path in [
            paths.record(),
            paths.booted(),
            paths.reloaded(),
            paths.qmp_socket(),
            paths.agent_socket(),
            paths.serial_socket(),
            paths.vnc_socket(),
            paths.vnc_password(),
        ] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns the last ends, newest first; none if the file cannot be read.
pub fn ends(paths: &VmPaths) -> Vec<End> {
    read_ends(paths).unwrap_or_default()
}

/// Like [`ends`], with the reason for a failure.
///
/// # Errors
/// The file cannot be read or parsed. A missing file is no error.
pub fn read_ends(paths: &VmPaths) -> io::Result<Vec<End>> {
    let text = match fs::read(paths.ends()) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut all: Vec<End> = serde_json::from_slice(&text)?;
    let words = last_words(paths);
    for end in &mut all {
        if let Some(lines) = words.get(&end.at) {
            end.console.clone_from(lines);
        }
    }
    Ok(all)
}

/// Returns the last console lines by the time of the end; none without permission to
/// read them.
fn last_words(paths: &VmPaths) -> BTreeMap<String, Vec<String>> {
    let text = fs::read(paths.last_words()).ok();
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Inserts `end` at the front and removes the eleventh, in memory.
pub fn put(all: &mut Vec<End>, end: End) {
    let again = |last: &End| (&last.reason, &last.detail) == (&end.reason, &end.detail);
    if end.reason == "start-failed" && all.first().is_some_and(again) {
        all.remove(0);
    }
    all.insert(0, end);
    all.truncate(ENDS);
}

/// Inserts `end` at the front and removes the eleventh. A repeated failure of a start replaces the
/// previous one: the service manager retries every few seconds, and older ends are more valuable.
///
/// The file is replaced atomically but not synced, which would take longer than the rest of a stop:
/// a power failure within seconds may lose the change.
///
/// # Errors
/// The file cannot be written, or the earlier ends cannot be read, in which case they are not
/// overwritten. A file that cannot be parsed is renamed.
pub fn keep(paths: &VmPaths, end: End) -> Result<Vec<End>, file::Error> {
    let mut all = match read_ends(paths) {
        Ok(all) => all,
        Err(error) if is_malformed(&error) => {
            let aside = paths.unreadable_ends();
            fs::rename(paths.ends(), &aside).map_err(file::Error::on("rename to", &aside))?;
            vec![]
        }
        Err(error) => return Err(file::Error::on("read", &paths.ends())(error)),
    };
    let written = fs::read(paths.ends()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let written: Vec<serde_json::Value> = written.unwrap_or_default();
    put(&mut all, end);
    // Each user with access to the state can read the reason; console lines can contain secrets.
    let words: BTreeMap<&str, &[String]> = all
        .iter()
        .filter(|end| !end.console.is_empty())
        .map(|end| (end.at.as_str(), end.console.as_slice()))
        .collect();
    if !words.is_empty() || paths.last_words().exists() {
        file::write_volatile(&paths.last_words(), json(&words).as_bytes(), 0o600)?;
    }
    let ends = all.iter().map(|end| {
        let end = serde_json::json!(End { console: vec![], ..end.clone() });
        with_unknown_fields(end, &written)
    });
    let ends: Vec<serde_json::Value> = ends.collect();
    file::write_volatile(&paths.ends(), json(&ends).as_bytes(), 0o640)?;
    Ok(all)
}

/// The file was read but is truncated or has another format.
fn is_malformed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Adds the fields of a newer version to an end.
fn with_unknown_fields(
    mut end: serde_json::Value,
    written: &[serde_json::Value],
) -> serde_json::Value {
    let before = written.iter().find(|before| before["at"] == end["at"]);
    if let (Some(fields), Some(before)) =
        (end.as_object_mut(), before.and_then(serde_json::Value::as_object))
    {
        // Console lines are stored in a separate file.
        for (key, value) in before.iter().filter(|(key, _)| *key != "console") {
            fields.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    end
}

fn json<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists: encoding cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> VmPaths {
        VmPaths { state: dir.to_owned(), runtime: dir.to_owned() }
    }

    #[test]
    fn console_lines_are_stored_privately() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let end = |at: &str, console: &[&str]| End {
            reason: "qemu-signal".into(),
            at: at.into(),
            detail: "died".into(),
            code: None,
            hint: None,
            failed: true,
            console: console.iter().map(ToString::to_string).collect(),
        };
        // The format of an earlier version, in one file.
        std::fs::write(paths.ends(), json(&[end("1", &["a secret"])])).unwrap();
        assert_eq!(ends(&paths)[0].console, ["a secret"]);
        keep(&paths, end("2", &["another"])).unwrap();
        let text = std::fs::read_to_string(paths.ends()).unwrap();
        assert!(!text.contains("secret") && !text.contains("another"), "{text}");
        let mode = paths.last_words().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(ends(&paths), [end("2", &["another"]), end("1", &["a secret"])]);
        for at in 3..13 {
            keep(&paths, end(&at.to_string(), &[])).unwrap();
        }
        assert_eq!(std::fs::read_to_string(paths.last_words()).unwrap(), "{}\n");
        std::fs::remove_file(paths.last_words()).unwrap();
        assert_eq!(ends(&paths).len(), ENDS);
    }

    #[test]
    fn last_ten_ends_are_stored() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        for number in 0..13 {
            let end = End {
                reason: "stopped".into(),
                at: format!("2026-01-01T00:00:{number:02}Z"),
                detail: String::new(),
                code: None,
                hint: None,
                failed: false,
                console: vec![],
            };
            keep(&path, end).unwrap();
        }
        let kept = ends(&path);
        assert_eq!(kept.len(), ENDS);
        assert_eq!(kept[0].at, "2026-01-01T00:00:12Z");
        assert_eq!(kept[9].at, "2026-01-01T00:00:03Z");
    }

    #[test]
    fn repeated_start_failure_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        let end = |reason: &str, second: u8, detail: &str| End {
            reason: reason.into(),
            at: format!("2026-01-01T00:00:{second:02}Z"),
            detail: detail.into(),
            code: None,
            hint: None,
            failed: true,
            console: vec![],
        };
        keep(&path, end("qemu-exited", 0, "x")).unwrap();
        keep(&path, end("qemu-exited", 1, "x")).unwrap();
        for second in 2..30 {
            keep(&path, end("start-failed", second, "no bridge")).unwrap();
        }
        let kept = keep(&path, end("start-failed", 30, "no room")).unwrap();
        let seconds: Vec<&str> = kept.iter().map(|end| &end.at[17..19]).collect();
        assert_eq!(seconds, ["30", "29", "01", "00"]);
    }

    #[test]
    fn unparsable_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        std::fs::write(path.ends(), "{").unwrap();
        assert!(ends(&path).is_empty());
    }

    #[test]
    fn record_of_older_version_is_read() {
        let text = include_str!("../../tests/golden/record-0.1.0.json");
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.pid, record.version), (4711, 0));
        assert!(record.ready, "an older record counts as ready");
    }

    #[test]
    fn record_must_be_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, paths.record(), fifo, mode, 0).unwrap();
        assert!(Record::read(&paths).is_err());
        fs::remove_file(paths.record()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", paths.record()).unwrap();
        assert!(Record::read(&paths).is_err());
        fs::remove_file(paths.record()).unwrap();
        fs::write(paths.record(), vec![b' '; (MOST + 1) as usize]).unwrap();
        assert!(Record::read(&paths).is_err());
    }

    /// A rollback: a supervisor of an earlier version adopts QEMU, then a newer one again.
    #[test]
    fn newer_record_is_kept_when_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let text = include_str!("../../tests/golden/record-newer.json");
        fs::write(paths.record(), text).unwrap();
        let mut record = Record::read(&paths).unwrap().unwrap();
        assert_eq!(record.version, 99);
        let isolation = record.isolation.as_ref().unwrap();
        assert!(isolation.has(Layer::Network) && !isolation.has(Layer::Uid));
        assert!(isolation.describe().contains("memory-keys") && record.has_private_network());
        record.ready = false;
        record.update(&paths).unwrap();
        let mut before: serde_json::Value = serde_json::from_str(text).unwrap();
        let after: serde_json::Value =
            serde_json::from_slice(&fs::read(paths.record()).unwrap()).unwrap();
        before["ready"] = false.into();
        assert_eq!(before, after);
    }

    #[test]
    fn record_without_a_process_is_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(Record::read(&paths).unwrap().is_none());
        let text = include_str!("../../tests/golden/record-newer.json");
        let wrong = |key: &str, value: serde_json::Value| {
            let mut record: serde_json::Value = serde_json::from_str(text).unwrap();
            record[key] = value;
            record.to_string()
        };
        for text in [
            String::new(),
            text[..text.len() / 2].to_owned(),
            wrong("pid", 0.into()),
            wrong("pid", (-1).into()),
            wrong("startTime", 0.into()),
            wrong("startTime", serde_json::Value::Null),
            wrong("bootId", "".into()),
        ] {
            fs::write(paths.record(), &text).unwrap();
            assert!(Record::read(&paths).is_err(), "{text}");
        }
        fs::remove_file(paths.record()).unwrap();
        fs::create_dir(paths.record()).unwrap();
        assert!(Record::read(&paths).is_err());
    }

    #[test]
    fn ends_of_a_newer_version_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        let newer = r#"[{"reason":"melted","at":"1","detail":"d","failed":true,"by":{"uid":5}}]"#;
        fs::write(path.ends(), newer).unwrap();
        let end = End {
            reason: "stopped".into(),
            at: "2".into(),
            detail: String::new(),
            code: None,
            hint: None,
            failed: false,
            console: vec![],
        };
        assert_eq!(keep(&path, end.clone()).unwrap().len(), 2);
        let ends: serde_json::Value =
            serde_json::from_slice(&fs::read(path.ends()).unwrap()).unwrap();
        assert_eq!(ends[1]["by"]["uid"], 5);
        // An unparsable file is renamed; an unreadable one is left alone.
        fs::write(path.ends(), "[{").unwrap();
        assert_eq!(keep(&path, end.clone()).unwrap().len(), 1);
        assert_eq!(fs::read_to_string(path.unreadable_ends()).unwrap(), "[{");
        fs::remove_file(path.ends()).unwrap();
        fs::create_dir(path.ends()).unwrap();
        assert!(keep(&path, end).is_err());
    }

    #[test]
    fn record_stays_while_a_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let held = liveness::Liveness::for_qemu(&paths).unwrap().into_fds([7, 8]).unwrap();
        fs::write(paths.record(), "x").unwrap();
        fs::write(paths.qmp_socket(), "").unwrap();
        Record::remove(&paths);
        assert!(paths.record().exists() && paths.qmp_socket().exists());
        drop(held);
        Record::remove(&paths);
        assert!(!paths.record().exists() && !paths.qmp_socket().exists());
    }
}
