//! `[image]` and `[disk.NAME.image]`: the image from which a disk is created once.

use std::path::PathBuf;

use super::{
    choice::Clone as DiskClone,
    reading::{At, Key, Reading},
    table::Table,
    text,
};
use crate::value::{Algorithm, Digest, shown};

/// An image and how to verify it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its location.
    pub origin: Origin,
    /// Its checksum, of the bytes at `origin` before decompression.
    pub checksum: Checksum,
}

/// The location of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `url`: `http://` or `https://`.
    Http(String),
    /// `path`, or `url` with `file://`; absolute, resolved against the VM file's directory.
    Path(PathBuf),
}

/// How to verify an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// `sha256` or `sha512`.
    Digest(Digest),
    /// `checksums`: the URL (http, https or file) of a SHA256SUMS or SHA512SUMS file that lists the
    /// image by its file name.
    Sums(String),
    /// `insecureNoChecksum = true`, or a `path`, for which a checksum is optional.
    None,
}

/// The keys of an image table as written.
pub(super) struct ImageKeys {
    /// The table's header.
    at: At,
    url: Key<String>,
    path: Key<String>,
    sha256: Key<String>,
    sha512: Key<String>,
    checksums: Key<String>,
    insecure: Key<bool>,
}

impl ImageKeys {
    /// Parses `[disk.NAME.image]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>) -> Self {
        let keys = Self::take_shared(r, &mut table);
        table.finish(r);
        keys
    }

    /// Parses `[image]`, which also contains `clone`.
    pub(super) fn take_flat(r: &mut Reading<'_>, mut table: Table<'_>) -> (Self, Key<DiskClone>) {
        let keys = Self::take_shared(r, &mut table);
        let clone = table.take(r, "clone");
        table.finish(r);
        (keys, clone)
    }

    fn take_shared(r: &mut Reading<'_>, table: &mut Table<'_>) -> Self {
        Self {
            at: table.at.clone(),
            url: table.take(r, "url"),
            path: table.take(r, "path"),
            sha256: table.take(r, "sha256"),
            sha512: table.take(r, "sha512"),
            checksums: table.take(r, "checksums"),
            insecure: table.take(r, "insecureNoChecksum"),
        }
    }

    /// Returns the position of the table.
    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// Returns the image, or `None` after reporting problems.
    pub(super) fn build(self, r: &mut Reading<'_>) -> Option<Image> {
        let origin = self.origin(r);
        let checksum = self.checksum(r, origin.as_ref());
        Some(Image { origin: origin?, checksum: checksum? })
    }

    fn origin(&self, r: &mut Reading<'_>) -> Option<Origin> {
        let mut written: Vec<&At> = [&self.url.at, &self.path.at].into_iter().flatten().collect();
        written.sort_by_key(|at| at.span.start);
        if let [first, second] = written.as_slice() {
            let (line, first) = (r.line(first.span.start), last(first));
            r.refuse(
                second,
                format!("`{first}` in line {line} already sets the image"),
                Some("keep one of the two".into()),
            );
        }
        if self.url.at.is_none() && self.path.at.is_none() {
            let hint = "write `url = \"https://…\"`, or `path = \"…\"` for a file of this host";
            r.refuse(&self.at, "the image has no location", Some(hint.into()));
        }
        if let Some((at, url)) = self.url.good() {
            return address(r, at, url);
        }
        let (at, path) = self.path.good()?;
        text::path(r, at, path).map(Origin::Path)
    }

    fn checksum(&self, r: &mut Reading<'_>, origin: Option<&Origin>) -> Option<Checksum> {
        let mut written: Vec<&At> = [&self.sha256.at, &self.sha512.at, &self.checksums.at]
            .into_iter()
            .flatten()
            .chain(self.insecure.good().filter(|(_, insecure)| **insecure).map(|(at, _)| at))
            .collect();
        written.sort_by_key(|at| at.span.start);
        if let [first, second, ..] = written.as_slice() {
            let (line, first) = (r.line(first.span.start), last(first));
            r.refuse(
                second,
                format!("`{first}` in line {line} already sets how the image is verified"),
                Some("keep one of the two".into()),
            );
        }
        for (key, algorithm) in
            [(&self.sha256, Algorithm::Sha256), (&self.sha512, Algorithm::Sha512)]
        {
            if let Some((at, hex)) = key.good() {
                return digest(r, at, algorithm, hex).map(Checksum::Digest);
            }
        }
        if let Some((at, sums)) = self.checksums.good() {
            address(r, at, sums)?;
            if let (Some((at, url)), Some(Origin::Http(_))) = (self.url.good(), origin) {
                let path = url.split(['?', '#']).next().unwrap_or_default();
                if path.ends_with('/') || path.matches('/').count() < 3 {
                    let message = "the URL has no file name to find in `checksums`";
                    r.refuse(at, message, None);
                }
            }
            return Some(Checksum::Sums(sums.clone()));
        }
        if let (true, Some((at, _)), Some(Origin::Http(_))) =
            (written.is_empty(), self.url.good(), origin)
        {
            r.refuse(
                at,
                "a download requires a checksum",
                Some(
                    "write `sha256 = \"…\"`, or `checksums = \"…\"` with the address of a \
                     SHA256SUMS file; \
                     `insecureNoChecksum = true` disables verification"
                        .into(),
                ),
            );
        }
        Some(Checksum::None)
    }
}

/// Parses the URL of an image or of a list of checksums.
fn address(r: &mut Reading<'_>, at: &At, url: &str) -> Option<Origin> {
    let key = last(at);
    let Some((scheme, rest)) = url.split_once("://") else {
        let hint = match key {
            "url" => "write `path = …` for a file of this host",
            _ => "write `file:///…` for a file of this host",
        };
        r.wrong(at, format!("`{}` is not a URL", shown(url)), Some(hint.into()));
        return None;
    };
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let message = format!("`{}` contains spaces or control characters", shown(url));
        r.wrong(at, message, Some("write a space as `%20` in a URL".into()));
        return None;
    }
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => {
            if rest.is_empty() || rest.starts_with(['/', '?', '#', ':']) {
                r.wrong(at, format!("`{}` has no host", shown(url)), None);
                return None;
            }
            Some(Origin::Http(url.to_owned()))
        }
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                let hint = "write `file:///` and an absolute path, or use `path = …`";
                let message = format!("`{}` is not an absolute path", shown(url));
                r.wrong(at, message, Some(hint.into()));
                return None;
            }
            let Some(path) = text::percent_decoded(path) else {
                let message = format!("`{}` contains a `%` without two hex digits", shown(url));
                r.wrong(at, message, Some("write a `%` as `%25`".into()));
                return None;
            };
            text::path(r, at, &path).map(Origin::Path)
        }
        _ => {
            r.wrong(
                at,
                format!("the URL scheme `{}://` is not supported", shown(scheme)),
                Some("use `https://`, `http://` or `file://`".into()),
            );
            None
        }
    }
}

fn digest(r: &mut Reading<'_>, at: &At, algorithm: Algorithm, hex: &str) -> Option<Digest> {
    let refused = match Digest::parse_prefixed(algorithm, hex) {
        Ok(digest) => return Some(digest),
        Err(refused) => refused,
    };
    let mut others = [Algorithm::Sha256, Algorithm::Sha512].into_iter();
    let other =
        others.find(|other| *other != algorithm && Digest::parse_prefixed(*other, hex).is_ok());
    let hint = other.map(|other| format!("this is a digest for `{} = …`", other.name()));
    r.wrong(at, refused.to_string(), hint);
    None
}

/// Returns the last part of a key's path.
fn last(at: &At) -> &str {
    at.key.rsplit('.').next().unwrap_or_default()
}
