//! What an exported VM is: the files of an archive, how they are called, and whether they are what was exported.

use serde::{Deserialize, Serialize};

use crate::{
    spec::Format,
    value::{Label, VmName, shown},
};

/// The version of the form that is written here; an archive of a later one is not read.
pub const VERSION: u32 = 1;
/// The most files that an archive can have: far more than a VM has.
pub const MOST_FILES: usize = 64;

/// A file of an archive, by what it is. Its path is `NAME/` and its own name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The VM file, always the first.
    VmFile,
    /// What must never change under the guest.
    Identity,
    /// The file that `userData` names.
    UserData,
    /// The UEFI variables.
    EfiVars,
    /// What a disk was made from.
    Origin(Label),
    /// A disk.
    Disk(Label, Format),
    /// The digests of all others, always the last.
    Manifest,
}

impl Part {
    /// Its name in the archive.
    pub fn name(&self) -> String {
        match self {
            Self::VmFile => "vm.toml".into(),
            Self::Identity => "identity.toml".into(),
            Self::UserData => "user-data".into(),
            Self::EfiVars => "efivars.fd".into(),
            Self::Origin(disk) => format!("{disk}.origin.json"),
            Self::Disk(disk, format) => format!("{disk}.{}", format.name()),
            Self::Manifest => "manifest.json".into(),
        }
    }

    /// What a name means; `None` where no file of an archive is called so.
    pub fn of(name: &str) -> Option<Self> {
        let fixed = [Self::VmFile, Self::Identity, Self::UserData, Self::EfiVars, Self::Manifest];
        if let Some(part) = fixed.into_iter().find(|part| part.name() == name) {
            return Some(part);
        }
        let (disk, suffix) = name.split_once('.')?;
        let disk = disk.parse().ok()?;
        match suffix {
            "origin.json" => Some(Self::Origin(disk)),
            "qcow2" => Some(Self::Disk(disk, Format::Qcow2)),
            "raw" => Some(Self::Disk(disk, Format::Raw)),
            _ => None,
        }
    }

    /// How long it may be, in bytes; `None` for what may be as long as it likes.
    pub const fn limit(&self) -> Option<u64> {
        match self {
            Self::VmFile | Self::UserData | Self::Manifest => Some(1 << 20),
            Self::Identity | Self::Origin(_) => Some(64 << 10),
            Self::EfiVars => Some(64 << 20),
            Self::Disk(..) => None,
        }
    }
}

/// The VM and the part that a path in an archive means. There is one way only to write each: `..`, a leading `/`, a second
/// `/` and the like mean nothing.
pub fn member(path: &[u8]) -> Option<(VmName, Part)> {
    let (vm, name) = std::str::from_utf8(path).ok()?.split_once('/')?;
    Some((vm.parse().ok()?, Part::of(name)?))
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Of the archive's form.
    pub version: u32,
    /// The VM.
    pub name: VmName,
    /// The version of qvm that wrote it.
    pub qvm: String,
    /// When, RFC 3339.
    pub exported_at: String,
    /// All other files.
    pub files: Vec<File>,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name, without the VM's.
    pub name: String,
    /// Its length, in bytes.
    pub size: u64,
    /// Its SHA-256, in lower-case hex digits.
    pub sha256: String,
}

/// How an archive differs from what was exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not a manifest.
    #[error("`manifest.json` cannot be read: {0}")]
    Manifest(String),
    /// It is of a later qvm.
    #[error("it has the version {0}, and this qvm knows versions up to {VERSION}")]
    Version(u32),
    /// The directory in the archive is called otherwise.
    #[error("`manifest.json` is of the VM `{manifest}`, and the files of `{files}`")]
    Name {
        /// As the manifest has it.
        manifest: VmName,
        /// As the paths have it.
        files: VmName,
    },
    /// Not there.
    #[error("`{0}` is missing")]
    Missing(String),
    /// There, and not known.
    #[error("`{0}` is not in `manifest.json`")]
    Unlisted(String),
    /// Other bytes.
    #[error("`{name}` is damaged: its SHA-256 is {found}, and was {expected} when it was exported")]
    Digest {
        /// The file.
        name: String,
        /// Of the bytes that are there.
        found: String,
        /// As the manifest has it.
        expected: String,
    },
}

impl Manifest {
    /// Reads it.
    ///
    /// # Errors
    /// It is none, or of a later version.
    pub fn read(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let wrong = |error: serde_json::Error| Error::Manifest(shown(&error.to_string()));
        // The version first: of a later one, the rest may be other.
        let Versioned { version } = serde_json::from_slice(json).map_err(wrong)?;
        if version > VERSION {
            return Err(Error::Version(version));
        }
        serde_json::from_slice(json).map_err(wrong)
    }

    /// Compares it with the files that were found.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, vm: &VmName, found: &[File]) -> Result<(), Error> {
        if self.name != *vm {
            return Err(Error::Name { manifest: self.name.clone(), files: vm.clone() });
        }
        for listed in &self.files {
            let Some(file) = found.iter().find(|file| file.name == listed.name) else {
                return Err(Error::Missing(shown(&listed.name)));
            };
            if (file.size, &file.sha256) != (listed.size, &listed.sha256) {
                return Err(Error::Digest {
                    name: file.name.clone(),
                    found: file.sha256.clone(),
                    expected: shown(&listed.sha256),
                });
            }
        }
        let unlisted = |file: &&File| self.files.iter().all(|listed| listed.name != file.name);
        match found.iter().find(unlisted) {
            Some(file) => Err(Error::Unlisted(file.name.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_there_and_back() {
        let root = Label::root();
        for part in [
            Part::VmFile,
            Part::Identity,
            Part::UserData,
            Part::EfiVars,
            Part::Origin(root.clone()),
            Part::Disk(root.clone(), Format::Raw),
            Part::Disk(root, Format::Qcow2),
            Part::Manifest,
        ] {
            let path = format!("web/{}", part.name());
            assert_eq!(member(path.as_bytes()), Some(("web".parse().unwrap(), part)));
        }
        for path in [
            "vm.toml",
            "/web/vm.toml",
            "../vm.toml",
            "web/../vm.toml",
            "web//vm.toml",
            "./web/vm.toml",
            "web/",
            "web/x/vm.toml",
            "web/vm.toml/",
            "web/.qcow2",
            "web/../etc.qcow2",
            "Web/vm.toml",
            "web/root.qcow2.raw",
            "web/ROOT.raw",
            "web/console.log",
            "web/vm.toml\0",
            "",
        ] {
            assert_eq!(member(path.as_bytes()), None, "{path}");
        }
        assert_eq!(member(b"web/\xff.raw"), None);
    }

    fn file(name: &str, digit: char) -> File {
        File { name: name.into(), size: 1, sha256: digit.to_string().repeat(64) }
    }

    #[test]
    fn every_difference_is_told() {
        let manifest = Manifest {
            version: VERSION,
            name: "web".parse().unwrap(),
            qvm: "0.1.0".into(),
            exported_at: "2026-01-02T03:04:05Z".into(),
            files: vec![file("vm.toml", 'a'), file("root.raw", 'b')],
        };
        let check = |files: &[File]| manifest.check(&"web".parse().unwrap(), files);
        check(&manifest.files).unwrap();
        assert_eq!(check(&manifest.files[..1]), Err(Error::Missing("root.raw".into())));
        let damaged = [file("vm.toml", 'a'), file("root.raw", 'c')];
        assert!(matches!(check(&damaged), Err(Error::Digest { name, .. }) if name == "root.raw"));
        let more = [file("vm.toml", 'a'), file("root.raw", 'b'), file("data.raw", 'b')];
        assert_eq!(check(&more), Err(Error::Unlisted("data.raw".into())));
        let other = manifest.check(&"db".parse().unwrap(), &manifest.files).unwrap_err();
        assert!(matches!(other, Error::Name { .. }));

        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(Manifest::read(json.as_bytes()), Ok(manifest));
        let later = br#"{"version": 2, "files": "elsewhere"}"#;
        assert_eq!(Manifest::read(later), Err(Error::Version(2)));
        assert!(matches!(Manifest::read(b"{}"), Err(Error::Manifest(_))));
    }

    proptest! {
        #[test]
        fn a_member_is_one_file_below_one_directory(path in "[a-z./\\-]{0,24}") {
            if let Some((vm, part)) = member(path.as_bytes()) {
                prop_assert_eq!(format!("{vm}/{}", part.name()), path);
            }
        }
    }
}
