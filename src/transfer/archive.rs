//! The archive of an exported VM: a plain tar file with a fixed set of file names.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use tar::{EntryType, Header};

use super::archive_format::{self, File, Manifest, Part};
use crate::{
    image::qcow2,
    sys::digest::Digesting,
    value::{Algorithm, ErrorCode, Explain, Label, VmName, shown},
};

/// Why an archive is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of another kind.
    #[error("not an archive of `qvm export`")]
    Foreign,
    /// A file that is not part of an exported VM.
    #[error("`{0}` is not a file of an exported VM")]
    Path(String),
    /// An entry that is not a regular file.
    #[error("`{path}` is {kind}; only regular files are allowed")]
    Kind {
        /// The path in the archive.
        path: String,
        /// The kind of the entry.
        kind: &'static str,
    },
    /// Two files with one name.
    #[error("the archive contains `{0}` twice")]
    Twice(String),
    /// A file that is too long.
    #[error("`{path}` has {size} bytes; the limit is {limit}")]
    Long {
        /// The path in the archive.
        path: String,
        /// The size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Files of two VMs.
    #[error("`{path}` does not belong to the VM `{vm}`")]
    OtherVm {
        /// The path in the archive.
        path: String,
        /// The VM of the first file.
        vm: VmName,
    },
    /// A file after the manifest.
    #[error("`{0}` follows the manifest, which must be the last file")]
    After(String),
    /// Too many files.
    #[error("the archive has more than {} files", archive_format::MAX_FILES)]
    Many,
    /// The archive ends in a file.
    #[error("the archive ends in the middle of `{0}`")]
    Cut(String),
    /// The archive ends between two files.
    #[error("the archive ends before `manifest.json`")]
    NoManifest,
    /// A file is followed by something that is not a header.
    #[error("the archive is damaged or truncated after `{0}`")]
    Damaged(String),
    /// A digest or the manifest is wrong.
    #[error(transparent)]
    Content(#[from] archive_format::Error),
    /// A file that is not text.
    #[error("`{0}` is not UTF-8 text")]
    Text(String),
    /// A disk that the VM file does not have, or has at another path.
    #[error("`{0}` is not a disk that the VM file creates")]
    NoDisk(String),
    /// A damaged disk.
    #[error("disk {disk} is damaged")]
    Disk {
        /// The disk.
        disk: Label,
        /// The damage.
        source: qcow2::Error,
    },
    /// A disk with a backing file, through which the guest could read a file of this host.
    #[error("disk {0} has a backing file, which is not allowed in an archive")]
    Outside(Label),
    /// A disk that QEMU has marked as corrupt.
    #[error("disk {0} is marked corrupt")]
    MarkedCorrupt(Label),
    /// User-data that the VM file does not refer to.
    #[error("the archive contains `user-data`, but the VM file does not refer to it")]
    NoUserData,
    /// The identity cannot be read.
    #[error("cannot read `identity.toml`: {0}")]
    Identity(String),
    /// A field of the identity is invalid.
    #[error("`identity.toml` has an invalid `{0}`")]
    IdentityFlaw(&'static str),
    /// The archive cannot be read.
    #[error(transparent)]
    Read(io::Error),
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Foreign => ErrorCode::ArchiveForeign,
            Self::Path(..)
            | Self::Kind { .. }
            | Self::Twice(..)
            | Self::Long { .. }
            | Self::OtherVm { .. }
            | Self::After(..)
            | Self::Many
            | Self::Text(..)
            | Self::NoDisk(..)
            | Self::Outside(..)
            | Self::NoUserData
            | Self::Identity(..)
            | Self::IdentityFlaw(..) => ErrorCode::ArchiveInvalid,
            Self::Cut(..) | Self::NoManifest | Self::Damaged(..) | Self::Disk { .. } => {
                ErrorCode::ArchiveDamaged
            }
            Self::Content(error) => error.code(),
            Self::MarkedCorrupt(..) => ErrorCode::DiskCorrupt,
            Self::Read(source) => ErrorCode::of_io(source),
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Cut(_)
            | Self::NoManifest
            | Self::Damaged(_)
            | Self::Content(archive_format::Error::Digest { .. }) => {
                Some("copy it again, or export the VM again; nothing was imported".into())
            }
            Self::Content(archive_format::Error::Version(_)) => {
                Some("the archive was written by a newer qvm: upgrade qvm on this host".into())
            }
            Self::Foreign => {
                Some("to import a compressed archive: `zstd -dc FILE | qvm import -`".into())
            }
            _ => None,
        }
    }
}

/// The writer of an archive.
pub(crate) struct Writer<'w> {
    out: &'w mut dyn Write,
    vm: VmName,
    /// The modification time of all files, in seconds since the epoch.
    mtime: u64,
    files: Vec<File>,
}

/// Whether reading the source or writing the archive failed.
pub(crate) enum Broken {
    In(io::Error),
    Out(io::Error),
}

/// The size of one read, in bytes.
const STEP: u64 = 1 << 20;
/// The block size of tar, in bytes.
const BLOCK: usize = 512;

impl<'w> Writer<'w> {
    pub(crate) fn new(out: &'w mut dyn Write, vm: VmName, mtime: u64) -> Self {
        Self { out, vm, mtime, files: Vec::new() }
    }

    /// Adds a file of `size` bytes. Calls `goes_on` with the number of bytes written; `false`
    /// cancels.
    pub(crate) fn add(
        &mut self,
        part: &Part,
        size: u64,
        from: &mut dyn Read,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), Broken> {
        let header = self.header(part, size).map_err(Broken::Out)?;
        self.out.write_all(header.as_bytes()).map_err(Broken::Out)?;
        let digesting = Digesting::begin(Algorithm::Sha256).map_err(Broken::In)?;
        let mut done = 0;
        while done < size {
            if !goes_on(done) {
                return Err(Broken::In(io::Error::other("canceled")));
            }
            let step = STEP.min(size - done);
            let mut bytes = Vec::with_capacity(usize::try_from(step).unwrap_or_default());
            let read = (&mut *from).take(step).read_to_end(&mut bytes);
            if read.map_err(Broken::In)? == 0 {
                let text = "the file was truncated while it was read";
                return Err(Broken::In(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
            done += bytes.len() as u64;
            let bytes = Arc::new(bytes);
            digesting.take(&bytes);
            self.out.write_all(&bytes).map_err(Broken::Out)?;
        }
        let over = (done % BLOCK as u64) as usize;
        let padding = [0; BLOCK];
        self.out.write_all(&padding[..(BLOCK - over) % BLOCK]).map_err(Broken::Out)?;
        let sha256 = hex(digesting).map_err(Broken::In)?;
        self.files.push(File { name: part.name(), size, sha256 });
        Ok(())
    }

    /// Writes the manifest and ends the archive.
    pub(crate) fn end(mut self, exported_at: String) -> Result<(), Broken> {
        let manifest = Manifest {
            version: archive_format::VERSION,
            name: self.vm.clone(),
            qvm: env!("CARGO_PKG_VERSION").to_owned(),
            exported_at,
            files: std::mem::take(&mut self.files),
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|e| Broken::Out(e.into()))?;
        self.add(&Part::Manifest, json.len() as u64, &mut &json[..], &mut |_| true)?;
        // POSIX, pax, "ustar Interchange Format": two blocks of zeros.
        let end = self.out.write_all(&[0; 2 * BLOCK]).and_then(|()| self.out.flush());
        end.map_err(Broken::Out)
    }

    fn header(&self, part: &Part, size: u64) -> io::Result<Header> {
        // The limit of the eleven octal digits of POSIX; all tar programs in use understand GNU's
        // form of a longer size.
        let mut header = match size {
            ..0o100_000_000_000 => Header::new_ustar(),
            _ => Header::new_gnu(),
        };
        header.set_entry_type(EntryType::Regular);
        header.set_path(format!("{}/{}", self.vm, part.name()))?;
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        Ok(header)
    }
}

fn hex(digesting: Digesting) -> io::Result<String> {
    let digest = digesting.end().ok_or_else(|| io::Error::other("the digest thread has ended"))?;
    Ok(digest.hex().to_owned())
}

/// A file in an archive that is being read.
pub(crate) struct Member {
    pub(crate) vm: VmName,
    pub(crate) part: Part,
    /// The path for messages.
    pub(crate) path: String,
    pub(crate) size: u64,
}

impl Member {
    /// Parses a header.
    pub(crate) fn of(header: &Header, is_first: bool) -> Result<Self, Error> {
        if header.as_ustar().is_none() && header.as_gnu().is_none() {
            return Err(Error::Foreign);
        }
        let bytes = header.path_bytes();
        let path = shown(&String::from_utf8_lossy(&bytes));
        let kind = match header.entry_type() {
            EntryType::Regular => None,
            EntryType::Link => Some("a hard link"),
            EntryType::Symlink => Some("a symbolic link"),
            EntryType::Directory => Some("a directory"),
            EntryType::Char | EntryType::Block => Some("a device"),
            EntryType::Fifo => Some("a pipe"),
            _ => Some("a tar extension"),
        };
        let member = archive_format::member(&bytes);
        match (member, kind) {
            (Some((vm, part)), None) if !is_first || part == Part::VmFile => {
                let size = header.entry_size().map_err(|_| Error::Damaged(path.clone()))?;
                match part.limit().filter(|limit| size > *limit) {
                    Some(limit) => Err(Error::Long { path, size, limit }),
                    None => Ok(Self { vm, part, path, size }),
                }
            }
            (Some(_), None) => Err(Error::Foreign),
            (_, Some(kind)) => Err(Error::Kind { path, kind }),
            (None, None) => Err(Error::Path(path)),
        }
    }
}

/// A reader that counts and digests.
pub(crate) struct Digested<'r> {
    from: &'r mut dyn Read,
    digesting: Digesting,
    done: u64,
    /// Called with the number of bytes read; `false` cancels.
    goes_on: &'r mut dyn FnMut(u64) -> bool,
    /// Whether the failure was in reading, not in writing.
    pub(crate) failed: bool,
}

impl<'r> Digested<'r> {
    pub(crate) fn new(
        from: &'r mut dyn Read,
        goes_on: &'r mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Self> {
        let digesting = Digesting::begin(Algorithm::Sha256)?;
        Ok(Self { from, digesting, done: 0, goes_on, failed: false })
    }

    /// Returns the size and the digest.
    pub(crate) fn end(self, name: String) -> io::Result<File> {
        Ok(File { name, size: self.done, sha256: hex(self.digesting)? })
    }
}

impl Read for Digested<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.goes_on)(self.done) {
            self.failed = true;
            return Err(io::Error::other("canceled"));
        }
        let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
        let read = self.from.read(buffer).inspect_err(|e| self.failed = !interrupted(e))?;
        self.digesting.take(&Arc::new(buffer[..read].to_vec()));
        self.done += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Format;

    #[test]
    fn sizes_above_octal_digits_are_supported() {
        let mut out = Vec::new();
        let writer = Writer::new(&mut out, "web".parse().unwrap(), 1_700_000_000);
        let disk = Part::Disk(Label::root(), Format::Raw);
        for size in [0, (8 << 30) - 1, 8 << 30, 1 << 50] {
            let header = writer.header(&disk, size).unwrap();
            let member = Member::of(&header, false).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((member.part, member.size), (disk.clone(), size));
            assert_eq!(header.as_ustar().is_some(), size < 8 << 30);
        }
    }

    #[test]
    fn truncated_file_is_an_error() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, "web".parse().unwrap(), 0);
        let added = writer.add(&Part::VmFile, 10, &mut &b"short"[..], &mut |_| true);
        assert!(matches!(added, Err(Broken::In(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
        let mut endless = io::repeat(b'x');
        let added = writer.add(&Part::VmFile, 10, &mut endless, &mut |_| false);
        assert!(matches!(added, Err(Broken::In(_))));
    }
}
