//! Reads and writes the records of a VM's snapshots, and finds the files below a disk in them.

use std::path::PathBuf;

use super::{
    layout::VmPaths,
    snapshot_record::{DiskRecord, MAX_DEPTH, Present, SnapshotRecord, VERSION},
};
use crate::{
    sys::file,
    value::{ErrorCode, Explain, Label, SnapshotName},
};

/// Why the records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// A record is not valid TOML or has invalid values.
    #[error("cannot use the snapshot record `{}`", .path.display())]
    Content {
        /// The record.
        path: PathBuf,
        /// The cause.
        source: Box<toml::de::Error>,
    },
    /// A record has the version of a newer qvm.
    #[error("the snapshot record `{}` has version {version}; this qvm supports version {VERSION}",
        .path.display())]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A disk is based on a file that no record has.
    #[error("disk {disk}: no snapshot record has the file `{file}`, which the disk is based on")]
    Missing {
        /// The disk.
        disk: Label,
        /// The file.
        file: String,
    },
    /// The files of a disk are based on each other in a circle.
    #[error("disk {0}: its snapshot records form a circle")]
    Circle(Label),
    /// A record cannot be encoded.
    #[error("cannot write a snapshot record as TOML")]
    Encode(#[from] toml::ser::Error),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::File(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Content { .. } | Self::Newer { .. } | Self::Missing { .. } | Self::Circle(..) => {
                ErrorCode::SnapshotRecordInvalid
            }
            Self::Encode(..) => ErrorCode::InternalError,
            Self::File(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Content { .. } | Self::Missing { .. } | Self::Circle(_) => Some(
                "restore the files of `snapshots/` and `snapshots.toml` in the VM's state \
                 directory from a backup; the disks depend on them"
                    .into(),
            ),
            Self::Newer { .. } => Some("use the qvm that created the snapshot".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(
            self,
            Self::Content { .. } | Self::Newer { .. } | Self::Missing { .. } | Self::Circle(_)
        )
    }
}

/// The snapshots of a VM.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshots {
    /// What the present is based on.
    pub present: Present,
    /// The snapshots, the oldest first.
    pub all: Vec<SnapshotRecord>,
}

/// A file or the present of a disk that is an overlay on another file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Child {
    /// The disk itself.
    Present,
    /// The file of a snapshot.
    Snapshot(SnapshotName),
}

impl Snapshots {
    /// Reads all records of a VM.
    ///
    /// # Errors
    /// A record cannot be read or used.
    pub fn read(paths: &VmPaths) -> Result<Self, Error> {
        let mut all = Vec::new();
        for path in file::list(&paths.snapshots())? {
            let is_record = path.extension().is_some_and(|suffix| suffix == "toml");
            if !is_record || file::is_unfinished(&path) {
                continue;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let Some(name) = name else {
                return Err(content(&path, "its name is not that of a snapshot"));
            };
            let Some(record): Option<SnapshotRecord> = read(&path)? else { continue };
            checked_version(&path, record.version)?;
            if let Some(flaw) = record.flaw(&name) {
                return Err(content(&path, flaw));
            }
            all.push(record);
        }
        let present: Present = read(&paths.present())?.unwrap_or_default();
        checked_version(&paths.present(), present.version)?;
        if let Some(flaw) = present.flaw() {
            return Err(content(&paths.present(), flaw));
        }
        // Times in UTC, in one form: their order is that of the texts.
        all.sort_by(|a, b| (&a.created_at, &a.name).cmp(&(&b.created_at, &b.name)));
        Ok(Self { present, all })
    }

    /// Returns a snapshot.
    pub fn get(&self, name: &SnapshotName) -> Option<&SnapshotRecord> {
        self.all.iter().find(|one| one.name == *name)
    }

    /// Returns the record of a frozen file.
    fn of_file(&self, disk: &Label, file: &str) -> Option<&DiskRecord> {
        self.all.iter().filter_map(|one| one.disks.get(disk)).find(|one| one.file == file)
    }

    /// Returns the frozen files from `backing` downward, the nearest first.
    ///
    /// # Errors
    /// No record has one of the files, or they form a circle.
    pub fn chain_from<'a>(
        &'a self,
        disk: &Label,
        backing: Option<&'a str>,
    ) -> Result<Vec<&'a DiskRecord>, Error> {
        let (mut chain, mut next) = (Vec::new(), backing);
        while let Some(file) = next {
            let missing = || Error::Missing { disk: disk.clone(), file: file.to_owned() };
            let record = self.of_file(disk, file).ok_or_else(missing)?;
            if chain.len() > MAX_DEPTH {
                return Err(Error::Circle(disk.clone()));
            }
            chain.push(record);
            next = record.backing.as_deref();
        }
        Ok(chain)
    }

    /// Returns the frozen files below the present of a disk, the nearest first.
    ///
    /// # Errors
    /// As of [`Self::chain_from`].
    pub fn chain(&self, disk: &Label) -> Result<Vec<&DiskRecord>, Error> {
        self.chain_from(disk, self.present.backing.get(disk).map(String::as_str))
    }

    /// Returns what is directly based on a frozen file.
    pub fn children(&self, disk: &Label, file: &str) -> Vec<Child> {
        let is_on = |one: &DiskRecord| one.backing.as_deref() == Some(file);
        let snapshots = self.all.iter().filter(|one| one.disks.get(disk).is_some_and(is_on));
        let mut all: Vec<Child> = snapshots.map(|one| Child::Snapshot(one.name.clone())).collect();
        if self.present.backing.get(disk).is_some_and(|on| on == file) {
            all.push(Child::Present);
        }
        all
    }
}

/// Writes the record of a snapshot durably.
///
/// # Errors
/// The file cannot be written.
pub fn write(paths: &VmPaths, record: &SnapshotRecord) -> Result<(), Error> {
    file::make_dir(&paths.snapshots())?;
    file::sync_dir(&paths.snapshots())?;
    let text = toml::to_string(record)?;
    Ok(file::write(&paths.snapshot(&record.name), text.as_bytes(), 0o600)?)
}

/// Writes the record of the present durably.
///
/// # Errors
/// The file cannot be written.
pub fn write_present(paths: &VmPaths, present: &Present) -> Result<(), Error> {
    Ok(file::write(&paths.present(), toml::to_string(present)?.as_bytes(), 0o600)?)
}

/// Removes the record of a snapshot and its UEFI variables durably.
///
/// # Errors
/// A file cannot be removed.
pub fn remove(paths: &VmPaths, name: &SnapshotName) -> Result<(), Error> {
    file::remove(&paths.snapshot_efi_vars(name))?;
    file::remove(&paths.snapshot(name))?;
    Ok(file::sync_dir(&paths.snapshot(name))?)
}

fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>, Error> {
    let Some(bytes) = file::read(path)? else { return Ok(None) };
    let wrong = |source| Error::Content { path: path.to_owned(), source: Box::new(source) };
    // The version is read first: the other fields of a newer one may have other types.
    let text = String::from_utf8_lossy(&bytes);
    let table: toml::Table = toml::from_str(&text).map_err(wrong)?;
    let version = table.get("version").and_then(toml::Value::as_integer);
    if let Some(version) = version.and_then(|version| u32::try_from(version).ok()) {
        checked_version(path, version)?;
    }
    toml::from_str(&text).map(Some).map_err(wrong)
}

fn checked_version(path: &std::path::Path, version: u32) -> Result<(), Error> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::Newer { path: path.to_owned(), version })
}

fn content(path: &std::path::Path, flaw: &str) -> Error {
    let source = <toml::de::Error as serde::de::Error>::custom(flaw);
    Error::Content { path: path.to_owned(), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot_record::tests::record, *};

    fn on(name: Option<&str>) -> Present {
        let file = name.map(|name| ("root".parse().unwrap(), format!("root@{name}.qcow2")));
        Present { backing: file.into_iter().collect(), ..Present::default() }
    }

    fn files(chain: Vec<&DiskRecord>) -> Vec<&str> {
        chain.into_iter().map(|one| one.file.as_str()).collect()
    }

    #[test]
    fn chain_and_children_come_from_the_records() {
        let root: Label = "root".parse().unwrap();
        let all = vec![record("a", None), record("b", Some("a")), record("c", Some("a"))];
        let snapshots = Snapshots { present: on(Some("b")), all };
        assert_eq!(files(snapshots.chain(&root).unwrap()), ["root@b.qcow2", "root@a.qcow2"]);
        let child = |name: &str| Child::Snapshot(name.parse().unwrap());
        assert_eq!(snapshots.children(&root, "root@a.qcow2"), [child("b"), child("c")]);
        assert_eq!(snapshots.children(&root, "root@b.qcow2"), [Child::Present]);
        assert_eq!(snapshots.children(&root, "root@c.qcow2"), []);
        let data: Label = "data".parse().unwrap();
        assert_eq!(files(snapshots.chain(&data).unwrap()), Vec::<&str>::new());
    }

    #[test]
    fn missing_and_circular_records_are_errors() {
        let root: Label = "root".parse().unwrap();
        let missing = Snapshots { present: on(Some("b")), all: vec![record("b", Some("a"))] };
        assert!(matches!(missing.chain(&root), Err(Error::Missing { .. })));
        let all = vec![record("a", Some("b")), record("b", Some("a"))];
        let circle = Snapshots { present: on(Some("b")), all };
        assert!(matches!(circle.chain(&root), Err(Error::Circle(_))));
    }

    #[test]
    fn written_records_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let paths = VmPaths { state: dir.path().join("s"), runtime: dir.path().join("r") };
        assert_eq!(Snapshots::read(&paths).unwrap(), Snapshots::default());
        std::fs::create_dir(&paths.state).unwrap();
        let later =
            SnapshotRecord { created_at: "2027-01-01T00:00:00Z".into(), ..record("a", Some("b")) };
        for one in [&later, &record("b", None)] {
            write(&paths, one).unwrap();
        }
        write_present(&paths, &on(Some("a"))).unwrap();
        let read = Snapshots::read(&paths).unwrap();
        assert_eq!(read, Snapshots { present: on(Some("a")), all: vec![record("b", None), later] });
        assert!(read.get(&"b".parse().unwrap()).is_some());
        remove(&paths, &"b".parse().unwrap()).unwrap();
        assert_eq!(Snapshots::read(&paths).unwrap().all.len(), 1);
    }

    #[test]
    fn unusable_records_are_host_faults() {
        let dir = tempfile::tempdir().unwrap();
        let paths = VmPaths { state: dir.path().join("s"), runtime: dir.path().join("r") };
        std::fs::create_dir_all(paths.snapshots()).unwrap();
        let path = paths.snapshot(&"a".parse().unwrap());
        let newer = "version = 2\nkind = 7\n";
        let renamed = toml::to_string(&record("b", None)).unwrap();
        for text in ["", "x", newer, &renamed] {
            std::fs::write(&path, text).unwrap();
            let error = Snapshots::read(&paths).unwrap_err();
            assert!(error.is_host_fault(), "{error}");
            assert_eq!(matches!(error, Error::Newer { version: 2, .. }), text == newer);
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(paths.present(), "version = 3\n").unwrap();
        assert!(matches!(Snapshots::read(&paths), Err(Error::Newer { version: 3, .. })));
    }
}
