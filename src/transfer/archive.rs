//! The archive that a VM is exported to: a plain tar, which every tar reads, of a few files that are known by their names.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use tar::{EntryType, Header};

use super::archive_format::{self, File, Manifest, Part};
use crate::{
    image::qcow2,
    sys::digest::Digesting,
    value::{Algorithm, Explain, Label, VmName, shown},
};

/// Why an archive is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another kind of file.
    #[error("it is no archive that `qvm export` made")]
    Foreign,
    /// A file that no exported VM has.
    #[error("`{0}` is no file of an exported VM")]
    Path(String),
    /// Not a file.
    #[error("`{path}` is {kind}, and an exported VM has files only")]
    Kind {
        /// Where.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// Two files of one name.
    #[error("`{0}` is in it twice")]
    Twice(String),
    /// Too long for what it is.
    #[error("`{path}` has {size} bytes, and can have {limit}")]
    Long {
        /// Which.
        path: String,
        /// How long it is.
        size: u64,
        /// How long it may be.
        limit: u64,
    },
    /// Two VMs.
    #[error("`{path}` is of another VM than `{vm}`")]
    OtherVm {
        /// Which.
        path: String,
        /// The VM of the first file.
        vm: VmName,
    },
    /// It goes on.
    #[error("`{0}` comes after the manifest")]
    After(String),
    /// More files than any VM has.
    #[error("it has more than {} files", archive_format::MOST_FILES)]
    Many,
    /// A part of it is missing at its end.
    #[error("it ends in the middle of `{0}`")]
    Cut(String),
    /// The same, between two files.
    #[error("it ends before `manifest.json`")]
    NoManifest,
    /// What follows a file is no header.
    #[error("it is damaged, or cut off, after `{0}`")]
    Damaged(String),
    /// A digest, or the manifest itself.
    #[error(transparent)]
    Content(#[from] archive_format::Error),
    /// A text that is none.
    #[error("`{0}` is not UTF-8 text")]
    Text(String),
    /// A disk that the VM file does not name, or that it says is elsewhere.
    #[error("`{0}` is of no disk that its VM file has made")]
    NoDisk(String),
    /// A disk that is none.
    #[error("disk {disk} is damaged")]
    Disk {
        /// Which.
        disk: Label,
        /// How.
        source: qcow2::Error,
    },
    /// A disk through which the guest would read a file of this host.
    #[error("disk {0} stands on another file, and the guest could read any of this host's by that")]
    Outside(Label),
    /// A disk that QEMU has marked as corrupt.
    #[error("disk {0} is marked corrupt")]
    MarkedCorrupt(Label),
    /// User-data that nothing names.
    #[error("`user-data` is in it, and its VM file names none")]
    NoUserData,
    /// The identity cannot be read.
    #[error("`identity.toml` cannot be read: {0}")]
    Identity(String),
    /// It can, and is none.
    #[error("`identity.toml` has a wrong `{0}`")]
    IdentityFlaw(&'static str),
    /// The medium.
    #[error(transparent)]
    Read(io::Error),
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Cut(_)
            | Self::NoManifest
            | Self::Damaged(_)
            | Self::Content(archive_format::Error::Digest { .. }) => {
                Some("copy it again, or export the VM again; nothing was imported".into())
            }
            Self::Content(archive_format::Error::Version(_)) => {
                Some("it was made by a newer qvm: install that one here".into())
            }
            Self::Foreign => {
                Some("a compressed one is read as in `zstd -dc FILE | qvm import -`".into())
            }
            _ => None,
        }
    }
}

/// An archive that is written.
pub(crate) struct Writer<'w> {
    out: &'w mut dyn Write,
    vm: VmName,
    /// Seconds since 1970.
    mtime: u64,
    files: Vec<File>,
}

/// What failed of the two.
pub(crate) enum Broken {
    In(io::Error),
    Out(io::Error),
}

/// How much is read at once.
const STEP: u64 = 1 << 20;
/// tar's.
const BLOCK: usize = 512;

impl<'w> Writer<'w> {
    pub(crate) fn new(out: &'w mut dyn Write, vm: VmName, mtime: u64) -> Self {
        Self { out, vm, mtime, files: Vec::new() }
    }

    /// Adds a file, which has `size` bytes. `goes_on` is told how many of them are done, and ends it by saying `false`.
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
                return Err(Broken::In(io::Error::other("called off")));
            }
            let step = STEP.min(size - done);
            let mut bytes = Vec::with_capacity(usize::try_from(step).unwrap_or_default());
            let read = (&mut *from).take(step).read_to_end(&mut bytes);
            if read.map_err(Broken::In)? == 0 {
                let text = "it became shorter meanwhile";
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

    /// Ends it with its manifest.
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
        // The most that the eleven octal digits of POSIX hold; GNU's form of a longer one is understood by every tar that
        // is in use.
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
    let digest = digesting.end().ok_or_else(|| io::Error::other("the digest's thread died"))?;
    Ok(digest.hex().to_owned())
}

/// A file of an archive that is read.
pub(crate) struct Member {
    pub(crate) vm: VmName,
    pub(crate) part: Part,
    /// As a message shows it.
    pub(crate) path: String,
    pub(crate) size: u64,
}

impl Member {
    /// What a header means.
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
            _ => Some("an extension of tar's"),
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

/// What is read is counted and digested on the way.
pub(crate) struct Digested<'r> {
    from: &'r mut dyn Read,
    digesting: Digesting,
    done: u64,
    /// Told how many bytes are done; ends it by saying `false`.
    goes_on: &'r mut dyn FnMut(u64) -> bool,
    /// Reading has failed, and not writing.
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

    /// How long it was, and its digest.
    pub(crate) fn end(self, name: String) -> io::Result<File> {
        Ok(File { name, size: self.done, sha256: hex(self.digesting)? })
    }
}

impl Read for Digested<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.goes_on)(self.done) {
            self.failed = true;
            return Err(io::Error::other("called off"));
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
    fn files_longer_than_octal_digits_can_say() {
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
    fn a_file_that_becomes_shorter_is_no_file() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, "web".parse().unwrap(), 0);
        let added = writer.add(&Part::VmFile, 10, &mut &b"short"[..], &mut |_| true);
        assert!(matches!(added, Err(Broken::In(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
        let mut endless = io::repeat(b'x');
        let added = writer.add(&Part::VmFile, 10, &mut endless, &mut |_| false);
        assert!(matches!(added, Err(Broken::In(_))));
    }
}
