//! The errors of providing an image.

use std::path::PathBuf;

use super::{
    cache, checksum_file, fetch, qcow2, qemu_img,
    reference::{Compression, Foreign},
    writer,
};
use crate::{
    sys::file,
    value::{Digest, ErrorCode, Explain},
};

/// Why an image cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The download failed.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// The file of the image cannot be read.
    #[error("cannot read the image `{}`", .path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: writer::Error,
    },
    /// The SUMS file has no digest for the image.
    #[error("no checksum for {image} in {sums}")]
    Sums {
        /// The image.
        image: String,
        /// The SUMS file.
        sums: String,
        /// The cause.
        source: checksum_file::Error,
    },
    /// The URL has no file name to find in a SUMS file.
    #[error("the URL {0} has no file name to find in `checksums`")]
    NoName(String),
    /// The digest differs.
    #[error("the checksum of {image} is wrong: found {found}, expected {expected}")]
    Mismatch {
        /// The image.
        image: String,
        /// The expected digest.
        expected: Digest,
        /// The digest found.
        found: Digest,
        /// The SUMS file of the expected digest, unless configured directly.
        sums: Option<String>,
    },
    /// The cached file was damaged after its verification.
    #[error("{image} is damaged in the cache: `{}` has the digest {found} instead of \
        {expected}{}", .path.display(),
        if .source.is_some() { "; it cannot be replaced" } else { "" })]
    DamagedFile {
        /// The image.
        image: String,
        /// The file.
        path: PathBuf,
        /// The digest at its verification.
        expected: Digest,
        /// The current digest.
        found: Digest,
        /// Why it cannot be replaced, if tried.
        source: Option<Box<Error>>,
    },
    /// The compressed stream is damaged.
    #[error("{image} is damaged{}", if *.verified { ", though its checksum is right" } else { "" })]
    Damaged {
        /// The image.
        image: String,
        /// The checksum was verified.
        verified: bool,
        /// The damage.
        source: writer::Error,
    },
    /// Decompression requires too much memory.
    #[error("cannot decompress {image}")]
    Memory {
        /// The image.
        image: String,
        /// The compression.
        kind: Compression,
        /// The memory limit.
        source: writer::Error,
    },
    /// The file is empty.
    #[error("{0} is empty")]
    Empty(String),
    /// The file has another format.
    #[error("{image} is {}; an image must be qcow2 or raw", .foreign.what)]
    Foreign {
        /// The image.
        image: String,
        /// The format.
        foreign: Foreign,
    },
    /// The file is compressed twice.
    #[error("{image} is {} within a compressed file", .inner.name())]
    Twice {
        /// The image.
        image: String,
        /// The inner compression.
        inner: Compression,
    },
    /// The qcow2 header is damaged.
    #[error("{image} is not a usable qcow2 image")]
    Header {
        /// The image.
        image: String,
        /// The damage.
        source: qcow2::Error,
    },
    /// The image depends on other files.
    #[error("{image} is refused: {why}")]
    Refused {
        /// The image.
        image: String,
        /// The reason.
        why: String,
    },
    /// QEMU has marked the image as corrupt.
    #[error("{image} is refused: it is marked corrupt")]
    MarkedCorrupt {
        /// The image.
        image: String,
    },
    /// The tables are not consistent.
    #[error("{image} is corrupt or truncated")]
    Corrupt {
        /// The image.
        image: String,
        /// The output of qemu-img.
        source: qemu_img::Error,
    },
    /// qemu-img cannot be run.
    #[error("cannot check {image}")]
    Check {
        /// The image.
        image: String,
        /// The cause.
        source: qemu_img::Error,
    },
    /// The operation was canceled.
    #[error("the image download was canceled")]
    Canceled,
}

impl Error {
    /// Returns true if the operation was canceled.
    pub fn is_canceled(&self) -> bool {
        matches!(
            self,
            Self::Canceled
                | Self::Fetch(fetch::Error::Canceled)
                | Self::Check { source: qemu_img::Error::Canceled, .. }
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
            Self::DamagedFile { source: Some(source), .. } => Some(source.as_ref()),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Sums { .. } | Self::NoName(..) => ErrorCode::ChecksumMissing,
            Self::Mismatch { .. } => ErrorCode::ChecksumWrong,
            Self::DamagedFile { .. } | Self::Damaged { .. } => ErrorCode::ImageDamaged,
            Self::Memory { .. } => ErrorCode::ImageTooDemanding,
            Self::Empty(..) => ErrorCode::ImageEmpty,
            Self::Foreign { .. } | Self::Twice { .. } | Self::Header { .. } => {
                ErrorCode::ImageFormat
            }
            Self::Refused { .. } => ErrorCode::ImageRefused,
            Self::MarkedCorrupt { .. } | Self::Corrupt { .. } => ErrorCode::ImageCorrupt,
            Self::Canceled => ErrorCode::Canceled,
            Self::Cache(..)
            | Self::File(..)
            | Self::Fetch(..)
            | Self::Read { .. }
            | Self::Check { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Sums { .. } => Some("check that `checksums` belongs to this `url`".into()),
            Self::NoName(_) => Some("set `sha256` or `sha512` instead of `checksums`".into()),
            Self::Mismatch { sums: None, .. } => Some(
                "the download was discarded; if the publisher has replaced the image, set its new \
                 checksum in the VM file"
                    .into(),
            ),
            Self::Mismatch { sums: Some(sums), .. } => Some(format!(
                "the download was discarded; {sums} and the image can be of different releases \
                 while a mirror is updated"
            )),
            Self::Foreign { foreign, .. } => foreign.conversion_hint().map(str::to_owned),
            Self::Memory { kind, .. } => {
                let command = match kind {
                    Compression::Gzip => "gunzip FILE",
                    Compression::Xz => "xz --decompress FILE",
                    Compression::Zstd => "zstd --decompress --long=31 FILE",
                };
                Some(format!("decompress it (`{command}`) and set `path` to the result"))
            }
            Self::Refused { .. } => Some(
                "if you trust it, convert it to a single file: `qemu-img convert -O qcow2 FROM \
                 TO.qcow2`"
                    .into(),
            ),
            Self::DamagedFile { image, source: None, .. } => Some(format!(
                "the host's disk may be failing; the image has no checksum, so it is not \
                 downloaded again automatically: remove it with `qvm image rm {image}` to download \
                 it at the next start"
            )),
            Self::MarkedCorrupt { .. } => Some(
                "get another copy, or repair your own file: `qemu-img check -r all FILE`".into(),
            ),
            Self::Corrupt { .. } => Some("download it again from its publisher".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::DamagedFile { .. })
    }
}
