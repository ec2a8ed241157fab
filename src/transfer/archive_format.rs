//! The format of an exported VM: the names of its files, and the check against the manifest.

use serde::{Deserialize, Serialize};

use crate::{
    spec::Format,
    value::{ErrorCode, Label, VmName, shown},
};

/// The format version that is written; later versions are refused.
pub const VERSION: u32 = 1;
/// The maximum number of files of an archive, far more than a VM has.
pub const MAX_FILES: usize = 64;

/// A file of an archive. Its path is `NAME/` and the name of the part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The VM file, always first.
    VmFile,
    /// The identity.
    Identity,
    /// The file that `userData` names.
    UserData,
    /// The UEFI variables.
    EfiVars,
    /// The record of the image that a disk was created from.
    Origin(Label),
    /// A disk.
    Disk(Label, Format),
    /// The manifest with the digests of all others, always last.
    Manifest,
}

impl Part {
    /// Returns the name in the archive.
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

    /// Parses a name; `None` if it is not the name of a part.
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

    /// Returns the maximum size in bytes; `None` is unlimited.
    pub const fn limit(&self) -> Option<u64> {
        match self {
            Self::VmFile | Self::UserData | Self::Manifest => Some(1 << 20),
            Self::Identity | Self::Origin(_) => Some(64 << 10),
            Self::EfiVars => Some(64 << 20),
            Self::Disk(..) => None,
        }
    }
}

/// Parses a path into the VM and the part. Each has exactly one valid path: `..`, a leading `/`, a
/// second `/` and the like are refused.
pub fn member(path: &[u8]) -> Option<(VmName, Part)> {
    let (vm, name) = std::str::from_utf8(path).ok()?.split_once('/')?;
    Some((vm.parse().ok()?, Part::of(name)?))
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The format version.
    pub version: u32,
    /// The name of the VM.
    pub name: VmName,
    /// The version of qvm that wrote the archive.
    pub qvm: String,
    /// The time of the export, RFC 3339.
    pub exported_at: String,
    /// All other files.
    pub files: Vec<File>,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// The name without the directory of the VM.
    pub name: String,
    /// The size in bytes.
    pub size: u64,
    /// The SHA-256 digest in lower-case hex digits.
    pub sha256: String,
}

/// Why an archive differs from its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The manifest cannot be parsed.
    #[error("cannot parse `manifest.json`: {0}")]
    Manifest(String),
    /// The format version is newer.
    #[error("the archive has format version {0}; this qvm supports versions up to {VERSION}")]
    Version(u32),
    /// The directory in the archive has another name.
    #[error("`manifest.json` belongs to the VM `{manifest}`, but the files to `{files}`")]
    Name {
        /// The name in the manifest.
        manifest: VmName,
        /// The name in the paths.
        files: VmName,
    },
    /// A file is missing.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A file is not in the manifest.
    #[error("`{0}` is not in `manifest.json`")]
    Unlisted(String),
    /// A digest differs.
    #[error("`{name}` is damaged: its SHA-256 is {found}, the manifest has {expected}")]
    Digest {
        /// The name of the file.
        name: String,
        /// The digest of the file.
        found: String,
        /// The digest in the manifest.
        expected: String,
    },
}

impl Error {
    /// The code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Version(_) => ErrorCode::ArchiveTooNew,
            Self::Digest { .. } => ErrorCode::ArchiveDamaged,
            Self::Manifest(_) | Self::Name { .. } | Self::Missing(_) | Self::Unlisted(_) => {
                ErrorCode::ArchiveInvalid
            }
        }
    }
}

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    /// The text is not a manifest, or its version is newer.
    pub fn read(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let wrong = |error: serde_json::Error| Error::Manifest(shown(&error.to_string()));
        // The version is parsed first: a later format may differ in everything else.
        let Versioned { version } = serde_json::from_slice(json).map_err(wrong)?;
        if version > VERSION {
            return Err(Error::Version(version));
        }
        serde_json::from_slice(json).map_err(wrong)
    }

    /// Compares the manifest with the files of the archive.
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
    fn member_names_round_trip() {
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
    fn every_difference_is_reported() {
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
        fn member_is_one_file_in_one_directory(path in "[a-z./\\-]{0,24}") {
            if let Some((vm, part)) = member(path.as_bytes()) {
                prop_assert_eq!(format!("{vm}/{}", part.name()), path);
            }
        }
    }
}
