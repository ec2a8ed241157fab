//! Interprets an image's first bytes, its URL and a server's response headers.

use std::{
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::{
    spec::{Checksum, Format, Image, Origin},
    value::Digest,
};

/// The compression of a file, detected by its first bytes and never by its name: the target of a
/// redirect may have any content, and a wrong guess would write a compressed stream to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878.
    Zstd,
}

/// The number of bytes that [`Compression::of`] and [`Foreign::of`] need, unless the file is
/// shorter.
pub const HEAD: usize = 512;

impl Compression {
    /// Detects the format by the magic number.
    pub fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            // A Zstandard frame, or a skippable frame, which may precede it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The maximum length of a magic number.
    pub const MAGIC: usize = 6;

    /// Returns true if these bytes may be the beginning of a stream, even if shorter than its magic
    /// number.
    pub fn begins_with(self, head: &[u8]) -> bool {
        let magic: &[u8] = match self {
            Self::Gzip => &[0x1f, 0x8b, 8],
            Self::Xz => b"\xfd7zXZ\0",
            Self::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
        };
        !head.is_empty() && head.len() < magic.len() && magic.starts_with(head)
    }

    /// Returns the name for messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// A file that is neither qcow2 nor raw. Raw images have no magic number, so all other formats must
/// be recognized, or a guest would get a VMDK as its disk and not boot. Other formats are not
/// converted automatically: VMDK, VHD and VHDX can refer to other files, as can qcow2, and
/// `qemu-img` would open these with the privileges of qvm. The operator can convert a trusted image
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    /// The description of the format.
    pub what: &'static str,
    kind: Kind,
}

/// How a foreign file can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `qemu-img` supports the format.
    Disk,
    Zip,
    SevenZip,
    Bzip2,
    Lz4,
    Lzip,
    Tar,
    /// A tar archive with an OVF descriptor as its first file.
    Ova,
    Page,
    Other,
}

impl Foreign {
    /// Detects the format by the magic number.
    pub fn of(head: &[u8]) -> Option<Self> {
        const MAGICS: &[(&[u8], &str, Kind)] = &[
            (b"KDMV", "a VMDK image", Kind::Disk),
            (b"COWD", "a VMDK image", Kind::Disk),
            (b"# Disk DescriptorFile", "a VMDK descriptor", Kind::Disk),
            (b"vhdxfile", "a VHDX image", Kind::Disk),
            (b"conectix", "a VHD image", Kind::Disk),
            (b"QED\0", "a QED image", Kind::Disk),
            (b"WithoutFreeSpace", "a Parallels image", Kind::Disk),
            (b"WithouFreSpacExt", "a Parallels image", Kind::Disk),
            (b"LUKS\xba\xbe", "a LUKS container", Kind::Other),
            (b"PK\x03\x04", "a zip archive", Kind::Zip),
            (b"BZh", "bzip2-compressed", Kind::Bzip2),
            (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", Kind::SevenZip),
            (b"\x04\x22\x4d\x18", "lz4-compressed", Kind::Lz4),
            (b"LZIP", "lzip-compressed", Kind::Lzip),
            (b"<!DOCTYPE", "a web page", Kind::Page),
            (b"<!doctype", "a web page", Kind::Page),
            (b"<html", "a web page", Kind::Page),
            (b"<?xml", "an XML document", Kind::Other),
        ];
        if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
            return Some(Self { what: "a VDI image", kind: Kind::Disk });
        }
        if head.get(257..262) == Some(b"ustar") {
            let name = head[..100].split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(match name.to_ascii_lowercase().ends_with(b".ovf") {
                true => Self { what: "an OVA archive", kind: Kind::Ova },
                false => Self { what: "a tar archive", kind: Kind::Tar },
            });
        }
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        MAGICS
            .iter()
            .find(|(magic, ..)| head.starts_with(magic) || text.starts_with(magic))
            .map(|&(_, what, kind)| Self { what, kind })
    }

    /// Returns how to convert it to an image, if known.
    pub const fn conversion_hint(self) -> Option<&'static str> {
        match self.kind {
            Kind::Disk => {
                Some("convert it if you trust it: `qemu-img convert -O qcow2 FROM TO.qcow2`")
            }
            Kind::Zip => Some("extract it (`unzip FILE`) and set `path` to the image"),
            Kind::SevenZip => Some("extract it (`7z x FILE`) and set `path` to the image"),
            Kind::Bzip2 => Some("decompress it (`bunzip2 FILE`) and set `path` to the result"),
            Kind::Lz4 => Some("decompress it (`unlz4 FILE`) and set `path` to the result"),
            Kind::Lzip => Some("decompress it (`lzip -d FILE`) and set `path` to the result"),
            Kind::Tar => Some("extract it (`tar -xf FILE`) and set `path` to the image"),
            Kind::Ova => Some(
                "extract it (`tar -xf FILE`), convert its disk if you trust it (`qemu-img convert \
                 -O qcow2 DISK.vmdk DISK.qcow2`), and set `path` to the result",
            ),
            Kind::Page => Some("the URL is that of a web page or a login, not of the image"),
            Kind::Other => None,
        }
    }
}

/// Formats an image's origin for messages and records, without passwords.
pub fn shown(origin: &Origin) -> String {
    match origin {
        Origin::Http(url) => without_password(url),
        Origin::Path(path) => path.display().to_string(),
    }
}

/// Returns a URL without `user:password@`.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => url.to_owned(),
    }
}

/// Returns the file name of the origin for lookups in SUMS files: the last part of the path, with
/// `%XX` decoded.
pub fn file_name(origin: &Origin) -> Option<String> {
    let name = match origin {
        Origin::Path(path) => return path.file_name()?.to_str().map(str::to_owned),
        Origin::Http(url) => {
            let path = url.split(['?', '#']).next()?;
            path.split_once("://")?.1.split_once('/')?.1.rsplit('/').next()?
        }
    };
    String::from_utf8(percent_decoded(name)).ok().filter(|n| !n.is_empty())
}

/// Returns the path of a `file://` URL.
pub fn local_path(url: &str) -> Option<PathBuf> {
    let rest = url.strip_prefix("file://")?;
    let path = percent_decoded(rest.strip_prefix("localhost").unwrap_or(rest));
    Some(std::ffi::OsString::from_vec(path).into())
}

/// Decodes `%XX` in a part of a URL; a `%` without two hex digits is unchanged.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let decoded = hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    bytes
}

/// Returns the key of an image in the cache, without suffix. The key of a verified image is its
/// digest, so that two URLs of the same bytes share it. The key of others is a hash of the origin
/// (`place`), marked as unverified.
pub fn key(digest: Option<&Digest>, image: &Image, place: impl FnOnce() -> String) -> String {
    match (digest, &image.origin) {
        (Some(digest), _) => format!("{}-{}", digest.algorithm().name(), digest.hex()),
        (None, Origin::Http(_)) => format!("unverified-url-{}", place()),
        (None, Origin::Path(_)) => format!("unverified-path-{}", place()),
    }
}

/// Returns the digest in the VM file.
pub fn written_digest(image: &Image) -> Option<&Digest> {
    match &image.checksum {
        Checksum::Digest(digest) => Some(digest),
        Checksum::Sums(_) | Checksum::None => None,
    }
}

/// Returns the format according to the suffix of a cached file; `None` if it is not an image of the
/// cache.
pub fn format_of(file: &Path) -> Option<Format> {
    match file.extension()?.to_str()? {
        "qcow2" => Some(Format::Qcow2),
        "raw" => Some(Format::Raw),
        _ => None,
    }
}

/// The response headers that identify the version of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
    /// `Date`.
    pub date: Option<String>,
}

/// Returns a strong validator for `If-Range` (RFC 9110, 13.1.5): an entity tag without `W/`, or a
/// `Last-Modified` at least one second before `Date` (8.8.2.2), since a file may change twice
/// within a second. Without one, an interrupted download restarts.
pub fn strong_validator(headers: &Headers) -> Option<String> {
    let etag = headers.etag.as_deref().map(str::trim);
    if let Some(tag) = etag.filter(|t| t.starts_with('"') && t.len() > 2 && t.ends_with('"')) {
        return Some(tag.to_owned());
    }
    let modified = headers.last_modified.as_deref()?;
    let read = |date: &str| jiff::fmt::rfc2822::parse(date).ok();
    let age = read(headers.date.as_deref()?)?.timestamp().as_second()
        - read(modified)?.timestamp().as_second();
    (age >= 1).then(|| modified.to_owned())
}

/// Parses `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4): the first byte, and the total
/// if known.
pub fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|t| last < t)).then_some((first, total))
}

/// Parses `Content-Range: bytes */TOTAL` of a response 416: the size of the file.
pub fn unsatisfied_range(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes */")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn compression_is_detected_by_magic() {
        assert_eq!(Compression::of(&[0x1f, 0x8b, 8, 0]), Some(Compression::Gzip));
        assert_eq!(Compression::of(b"\xfd7zXZ\0\0"), Some(Compression::Xz));
        assert_eq!(Compression::of(&[0x28, 0xb5, 0x2f, 0xfd]), Some(Compression::Zstd));
        assert_eq!(Compression::of(&[0x52, 0x2a, 0x4d, 0x18]), Some(Compression::Zstd));
        assert_eq!(Compression::of(b"QFI\xfb"), None);
        assert_eq!(Compression::of(b""), None);
    }

    #[test]
    fn foreign_formats_are_detected() {
        for (head, what) in [
            (&b"KDMV\x01"[..], "a VMDK image"),
            (b"vhdxfile", "a VHDX image"),
            (b"\n  <html lang=en>", "a web page"),
            (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
            (b"PK\x03\x04", "a zip archive"),
        ] {
            assert_eq!(Foreign::of(head).unwrap().what, what);
        }
        let mut tar = [0; HEAD];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(Foreign::of(&tar).unwrap().what, "a tar archive");
        tar[..12].copy_from_slice(b"machine.OVF\0");
        assert_eq!(Foreign::of(&tar).unwrap().what, "an OVA archive");
        for magic in [&b"PK\x03\x04"[..], b"BZh9", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18", &tar]
        {
            assert!(
                Foreign::of(magic).unwrap().conversion_hint().unwrap().contains("`path`"),
                "{magic:?}"
            );
        }
        let mut boot_sector = [0; HEAD];
        boot_sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(Foreign::of(&boot_sector), None);
        assert_eq!(Foreign::of(&[0; HEAD]), None);
    }

    #[test]
    fn file_name_is_the_last_part() {
        let name = |url: &str| file_name(&Origin::Http(url.into()));
        assert_eq!(name("https://h/a/b.qcow2?x=/y#z").as_deref(), Some("b.qcow2"));
        assert_eq!(name("https://h/a%20b%2").as_deref(), Some("a b%2"));
        assert_eq!(name("https://h/%e2%82%ac").as_deref(), Some("€"));
        assert_eq!(name("https://h/"), None);
        assert_eq!(name("https://h"), None);
        assert_eq!(file_name(&Origin::Path("/srv/x%20y".into())).as_deref(), Some("x%20y"));
    }

    #[test]
    fn file_addresses_are_decoded() {
        assert_eq!(local_path("file:///srv/a%20b").as_deref(), Some(Path::new("/srv/a b")));
        assert_eq!(local_path("file://localhost/x").as_deref(), Some(Path::new("/x")));
        assert_eq!(local_path("https://h/x"), None);
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("https://u:p@h/x@y"), "https://h/x@y");
        assert_eq!(without_password("https://h/x@y"), "https://h/x@y");
        assert_eq!(without_password("https://u:p@h"), "https://h");
    }

    #[test]
    fn only_strong_validators_count() {
        let with = |etag: Option<&str>, modified: Option<&str>, date: Option<&str>| {
            strong_validator(&Headers {
                etag: etag.map(str::to_owned),
                last_modified: modified.map(str::to_owned),
                date: date.map(str::to_owned),
            })
        };
        let (then, now) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(with(Some("\"a\""), None, None).as_deref(), Some("\"a\""));
        assert_eq!(with(Some("W/\"a\""), None, None), None);
        assert_eq!(with(Some("a"), None, None), None);
        assert_eq!(with(Some("W/\"a\""), Some(then), Some(now)).as_deref(), Some(then));
        assert_eq!(
            with(None, Some(then), Some(then)),
            None,
            "a date equal to that of the response is weak"
        );
        assert_eq!(with(None, Some(then), None), None);
        assert_eq!(with(None, Some("yesterday"), Some(now)), None);
    }

    #[test]
    fn content_ranges_are_parsed() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in
            ["", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "items 0-1/2", "bytes -1-2/3"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_url_panics(url in "[ -~€]{0,60}") {
            let _ = (without_password(&url), content_range(&url));
            let _ = file_name(&Origin::Http(url));
        }
    }
}
