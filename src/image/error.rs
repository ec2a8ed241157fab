//! Why an image is not to be had, and what to do about it.

use std::path::PathBuf;

use super::{
    cache, checksum_file, fetch, qcow2, qemu_img,
    reference::{Compression, Foreign},
    writer,
};
use crate::{
    sys::file,
    value::{Digest, Explain},
};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The download.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// The image's file.
    #[error("cannot read the image `{}`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: writer::Error,
    },
    /// The SUMS file says nothing of it.
    #[error("no checksum for {image} in {sums}")]
    Sums {
        /// The image.
        image: String,
        /// The SUMS file.
        sums: String,
        /// What it says.
        source: checksum_file::Error,
    },
    /// The address of the image has no file name, and so no line of a SUMS file.
    #[error("the address {0} ends in no file name to look up in `checksums`")]
    NoName(String),
    /// It is not what it should be.
    #[error("the checksum of {image} is wrong: it has {found}, and {expected} is expected")]
    Mismatch {
        /// Which.
        image: String,
        /// What it must be.
        expected: Digest,
        /// What it is.
        found: Digest,
        /// Where the expected digest came from, unless it was written.
        sums: Option<String>,
    },
    /// It was right when it was put into the cache, and is not any more.
    #[error("{image} is damaged in the cache: `{}` hashes to {found}, and did to {expected} when it came{}", .path.display(),
        if .source.is_some() { "; it cannot be brought anew" } else { "" })]
    Spoilt {
        /// Which.
        image: String,
        /// The file.
        path: PathBuf,
        /// What it hashed to.
        expected: Digest,
        /// What it hashes to now.
        found: Digest,
        /// Why it cannot be brought anew, where that was tried.
        source: Option<Box<Error>>,
    },
    /// Its compressed stream is damaged.
    #[error("{image} is damaged{}", if *.verified { ", though its checksum is right" } else { "" })]
    Damaged {
        /// Which.
        image: String,
        /// Its checksum was compared.
        verified: bool,
        /// How.
        source: writer::Error,
    },
    /// Unpacking it takes too much memory.
    #[error("cannot unpack {image}")]
    Memory {
        /// Which.
        image: String,
        /// How it is compressed.
        kind: Compression,
        /// How much there is for it.
        source: writer::Error,
    },
    /// It has no bytes.
    #[error("{0} is empty")]
    Empty(String),
    /// It is a file of another kind.
    #[error("{image} is {}: an image is qcow2 or raw", .foreign.what)]
    Foreign {
        /// Which.
        image: String,
        /// What it is.
        foreign: Foreign,
    },
    /// It is compressed twice.
    #[error("{image} is {} within a compressed file", .inner.name())]
    Twice {
        /// Which.
        image: String,
        /// The inner compression.
        inner: Compression,
    },
    /// Its header is damaged.
    #[error("{image} is no usable qcow2 image")]
    Header {
        /// Which.
        image: String,
        /// How.
        source: qcow2::Error,
    },
    /// It depends on something outside it.
    #[error("{image} is refused: {why}")]
    Refused {
        /// Which.
        image: String,
        /// On what.
        why: String,
    },
    /// QEMU has marked it as corrupt.
    #[error("{image} is refused: it is marked corrupt")]
    MarkedCorrupt {
        /// Which.
        image: String,
    },
    /// Its tables are not consistent.
    #[error("{image} is corrupt or truncated")]
    Corrupt {
        /// Which.
        image: String,
        /// What qemu-img says.
        source: qemu_img::Error,
    },
    /// qemu-img cannot be run.
    #[error("cannot check {image}")]
    Check {
        /// Which.
        image: String,
        /// Why not.
        source: qemu_img::Error,
    },
    /// It was called off.
    #[error("fetching the image was called off")]
    CalledOff,
}

impl Error {
    /// It was called off, and nothing is wrong.
    pub fn is_called_off(&self) -> bool {
        matches!(
            self,
            Self::CalledOff
                | Self::Fetch(fetch::Error::CalledOff)
                | Self::Check { source: qemu_img::Error::CalledOff, .. }
        )
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Cache(error) => Some(error),
            Self::File(error) => Some(error),
            Self::Fetch(error) => Some(error),
            Self::Read { source, .. } => Some(source),
            Self::Damaged { source, .. } => Some(source),
            Self::Corrupt { source, .. } => Some(source),
            Self::Check { source, .. } => Some(source),
            Self::Spoilt { source: Some(source), .. } => Some(source.as_ref()),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Sums { .. } => Some("check that `checksums` belongs to this `url`".into()),
            Self::NoName(_) => Some("write `sha256` or `sha512` instead of `checksums`".into()),
            Self::Mismatch { sums: None, .. } => Some(
                "nothing was kept; if the publisher has replaced the image, write its new checksum into the VM file"
                    .into(),
            ),
            Self::Mismatch { sums: Some(sums), .. } => Some(format!(
                "nothing was kept; {sums} and the image may be of different releases for as long as a mirror is updated"
            )),
            Self::Foreign { foreign, .. } => foreign.way_out().map(str::to_owned),
            Self::Memory { kind, .. } => {
                let command = match kind {
                    Compression::Gzip => "gunzip FILE",
                    Compression::Xz => "xz --decompress FILE",
                    Compression::Zstd => "zstd --decompress --long=31 FILE",
                };
                Some(format!("unpack it by hand (`{command}`) and write the result as `path`"))
            }
            Self::Refused { .. } => Some(
                "if you trust it, make it stand alone: `qemu-img convert -O qcow2 FROM TO.qcow2`".into(),
            ),
            Self::Spoilt { image, source: None, .. } => Some(format!(
                "the host's disk may fail; it has no checksum, so another may have come in its place: `qvm image rm {image}` lets the next start fetch it"
            )),
            Self::MarkedCorrupt { .. } => Some(
                "get another copy of it; or repair a file of your own: `qemu-img check -r all FILE`".into(),
            ),
            Self::Corrupt { .. } => Some("fetch it again from where it is published".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Spoilt { .. })
    }
}
