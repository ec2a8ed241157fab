//! `[image]` and `[disk.NAME.image]`: what a disk is made from, once.

use std::path::PathBuf;

use crate::value::Digest;

/// An image and how it is known to be the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub origin: Origin,
    /// What it must hash to; of the bytes as they are at `origin`, before decompression.
    pub checksum: Checksum,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `url`: `http://` or `https://`.
    Http(String),
    /// `path`, or `url` with `file://`; absolute, resolved against the VM file's directory.
    Path(PathBuf),
}

/// How an image is known to be the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// `sha256` or `sha512`.
    Digest(Digest),
    /// `checksums`: the address (http, https or file) of a SHA256SUMS or SHA512SUMS file that lists
    /// the image by its file name.
    Sums(String),
    /// `insecureNoChecksum = true`, or a `path`, which needs none.
    None,
}
