//! What is written down about a run: what a later supervisor needs to take over, and how the last ten runs ended.

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
    value::chain,
};

/// How many ends are kept.
pub const ENDS: usize = 10;

/// The version of the run record that this program writes.
pub const VERSION: u32 = 1;

/// Why a run record says nothing.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the run record `{}`", path.display())]
pub struct Unreadable {
    path: PathBuf,
    source: io::Error,
}

/// The running QEMU, in `/run/qvm/NAME/record.json`. What a newer version wrote is kept when the record is written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the record; 0 is of a qvm whose QEMU holds no liveness locks.
    #[serde(default)]
    pub version: u32,
    /// QEMU's process.
    pub pid: u32,
    /// Its start time in clock ticks since boot, as in /proc/PID/stat: a pid that was used again has another.
    pub start_time: u64,
    /// The boot that `pid` belongs to.
    pub boot_id: String,
    /// When QEMU was started, RFC 3339.
    pub started_at: String,
    /// Its version.
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
    /// It takes up a saved state, and whether its vCPUs are to be held then; gone when that is done.
    #[serde(default)]
    pub restoring: Option<bool>,
    /// Its state is being saved, and whether its vCPUs were held before.
    #[serde(default)]
    pub saving: Option<bool>,
    /// An operator wants its vCPUs held, whatever else holds them.
    #[serde(default)]
    pub held: bool,
    /// Its guest's file systems are frozen, or were to be, and are to be thawed then, RFC 3339.
    #[serde(default)]
    pub frozen_until: Option<String>,
    /// What an operator should know about how it was started.
    #[serde(default)]
    pub notes: Vec<String>,
    /// It has been ready, or was not waited for any longer; a record that does not say so is of a version that waited for nothing.
    #[serde(default = "yes")]
    pub ready: bool,
    /// It was not ready in its time, and why.
    #[serde(default)]
    pub missed: Option<String>,
    /// The changes of the running machine since, by key (`machine::diff::applied`); null for what is gone.
    #[serde(default)]
    pub applied: BTreeMap<String, Option<String>>,
    /// The program that it is.
    #[serde(default)]
    pub binary: Option<PathBuf>,
    /// Which file that was, by `reread::file_id`.
    #[serde(default)]
    pub binary_id: Option<(u64, u64, i64)>,
    /// The firmware that it read, and when that file was last written, in seconds since 1970.
    #[serde(default)]
    pub firmware: Option<(PathBuf, i64)>,
    /// How it is kept apart; a record that does not say so is of a version that ran it as the supervisor.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// cloud-init's instance-id in the seed that it was given.
    #[serde(default)]
    pub instance: Option<String>,
    /// How its supervisor is ending QEMU; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intention: Option<RecordedIntention>,
    /// What a newer version wrote beside.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

fn yes() -> bool {
    true
}

/// The size of a run record at most, in bytes; one has some KiB.
const MOST: u64 = 1 << 20;

/// Reads a small regular file. A FIFO or a device in its place must hang no verb and fill no memory.
fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut text = Vec::new();
    if file.take(MOST + 1).read_to_end(&mut text)? as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 1 MiB"));
    }
    Ok(text)
}

impl Record {
    /// The record of a VM; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or does not identify a process.
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
        // An earlier qvm wrote these where it could not find them out.
        if record.pid == 0 || record.start_time == 0 || record.boot_id.is_empty() {
            let why = "it does not identify a process";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(record)
    }

    /// QEMU has no network but what it was given descriptors of.
    pub fn is_shut_off(&self) -> bool {
        self.isolation.as_ref().is_some_and(|isolation| isolation.has(Layer::Network))
    }

    /// Writes the record, and beside it the VM file that QEMU was started from.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, paths: &VmPaths, vm_file: &str) -> Result<(), file::Error> {
        file::write_volatile(&paths.booted(), vm_file.as_bytes(), 0o600)?;
        let _ = fs::remove_file(paths.reloaded());
        self.update(paths)
    }

    /// Writes the record alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn update(&self, paths: &VmPaths) -> Result<(), file::Error> {
        file::write_volatile(&paths.record(), json(self).as_bytes(), 0o640)
    }

    /// Forgets the run, when nothing of QEMU is left. Where a process still holds the liveness lock of the runtime directory, or may
    /// do so, everything stays: the sockets of a QEMU that lives are the only way to it.
    ///
    /// The lock in the state directory is not probed: all that is removed is in the runtime directory, and the storage of the state
    /// directory may hang.
    pub fn remove(paths: &VmPaths) {
        match liveness::held_runtime_lock(paths) {
            Ok(None) => {}
            Ok(Some(lock)) => {
                tracing::warn!("the run record stays: `{}` is held", lock.display());
                return;
            }
            Err(error) => {
                tracing::warn!("the run record stays: {}", chain(&error));
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

/// The last ends, newest first; none where there is no readable file.
pub fn ends(paths: &VmPaths) -> Vec<End> {
    read_ends(paths).unwrap_or_default()
}

/// The same, where it matters why there are none.
///
/// # Errors
/// The file cannot be read, or is no such list. That there is none is no error.
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

/// What the console said last, by the time of the end; nothing for who may not read it.
fn last_words(paths: &VmPaths) -> BTreeMap<String, Vec<String>> {
    let text = fs::read(paths.last_words()).ok();
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Puts `end` before the others and drops the eleventh, in memory.
pub fn put(all: &mut Vec<End>, end: End) {
    let again = |last: &End| (&last.reason, &last.detail) == (&end.reason, &end.detail);
    if end.reason == "start-failed" && all.first().is_some_and(again) {
        all.remove(0);
    }
    all.insert(0, end);
    all.truncate(ENDS);
}

/// Puts `end` before the others and drops the eleventh. A start that failed as the one before it did takes its place: the service
/// manager tries every few seconds, and older ends are worth more.
///
/// A new file under the old name, but not waited for until it is on the disk, which takes longer than all else at an end: a
/// power cut in the next seconds may lose it.
///
/// # Errors
/// The file cannot be written, or the earlier ends cannot be read: they are not overwritten then. A file that is no list of ends is
/// renamed.
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
    // How it ended is for all who may see the state; what the guest said may be anything.
    let words: BTreeMap<&str, &[String]> = all
        .iter()
        .filter(|end| !end.console.is_empty())
        .map(|end| (end.at.as_str(), end.console.as_slice()))
        .collect();
    if !words.is_empty() || paths.last_words().exists() {
        file::write_volatile(&paths.last_words(), json(&words).as_bytes(), 0o600)?;
    }
    let told = all.iter().map(|end| {
        let end = serde_json::json!(End { console: vec![], ..end.clone() });
        with_unknown_fields(end, &written)
    });
    let told: Vec<serde_json::Value> = told.collect();
    file::write_volatile(&paths.ends(), json(&told).as_bytes(), 0o640)?;
    Ok(all)
}

/// The file was read, and is no such list: truncated, or of another kind.
fn is_malformed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// An end with the fields that a newer version wrote of it.
fn with_unknown_fields(
    mut end: serde_json::Value,
    written: &[serde_json::Value],
) -> serde_json::Value {
    let before = written.iter().find(|before| before["at"] == end["at"]);
    if let (Some(fields), Some(before)) =
        (end.as_object_mut(), before.and_then(serde_json::Value::as_object))
    {
        // What the console said is in a file of its own.
        for (key, value) in before.iter().filter(|(key, _)| *key != "console") {
            fields.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    end
}

fn json<T: Serialize>(value: &T) -> String {
    // Strings, numbers and lists: there is nothing that JSON could not say.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> VmPaths {
        VmPaths { state: dir.to_owned(), runtime: dir.to_owned() }
    }

    #[test]
    fn what_the_console_said_is_kept_where_only_its_owner_reads() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let end = |at: &str, console: &[&str]| End {
            reason: "qemu-signal".into(),
            at: at.into(),
            detail: "died".into(),
            failed: true,
            console: console.iter().map(ToString::to_string).collect(),
        };
        // As an earlier version wrote it, all in one file.
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
    fn the_last_ten_ends_are_kept_newest_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        for number in 0..13 {
            let end = End {
                reason: "stopped".into(),
                at: format!("2026-01-01T00:00:{number:02}Z"),
                detail: String::new(),
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
    fn a_start_that_fails_again_and_again_pushes_nothing_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        let end = |reason: &str, second: u8, detail: &str| End {
            reason: reason.into(),
            at: format!("2026-01-01T00:00:{second:02}Z"),
            detail: detail.into(),
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
    fn a_broken_file_is_no_reason_to_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path());
        std::fs::write(path.ends(), "{").unwrap();
        assert!(ends(&path).is_empty());
    }

    #[test]
    fn a_record_of_an_older_version_still_reads() {
        let text = include_str!("../../tests/golden/record-0.1.0.json");
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.pid, record.version), (4711, 0));
        assert!(record.ready, "its guest would be waited for");
    }

    #[test]
    fn record_that_is_no_file_is_unreadable() {
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

    /// A rollback: the supervisor of an earlier version adopts QEMU, and the newer one does so again later.
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
        assert!(isolation.describe().contains("memory-keys") && record.is_shut_off());
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
            failed: false,
            console: vec![],
        };
        assert_eq!(keep(&path, end.clone()).unwrap().len(), 2);
        let ends: serde_json::Value =
            serde_json::from_slice(&fs::read(path.ends()).unwrap()).unwrap();
        assert_eq!(ends[1]["by"]["uid"], 5);
        // What is no list is renamed; what cannot be read is left alone.
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
