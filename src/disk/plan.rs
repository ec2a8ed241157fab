//! What becomes of a disk, given what is there already.
//!
//! The one rule that everything here serves: a disk that exists wins. It is never made anew, never shrunk and
//! never changed but by growing, whatever the VM file says of its image; what is then ignored is said.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::reference;
use crate::{
    spec::{self, Checksum, Disk, Format, Image},
    value::{Digest, Size},
};

/// The content of `NAME.origin.json` beside a disk: what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// The address of the image; `None` for a blank disk.
    pub origin: Option<String>,
    /// The image's digest, where it was verified.
    pub digest: Option<Digest>,
    /// How it was made.
    pub clone: spec::Clone,
    /// The base of an overlay.
    pub base: Option<PathBuf>,
    /// When, RFC 3339.
    pub made_at: String,
}

/// A disk that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// In which format.
    pub format: Format,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// There is one in the other format too.
    pub twice: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is there and large enough.
    Keep(Format),
    /// It is there and `size` grew.
    Grow(Format, Size),
    /// It is not there.
    Make,
}

/// What to do with a disk of qvm's own, and what the operator should know.
pub fn decide(disk: &Disk, found: Option<Found>, made: Option<&Made>) -> (Step, Vec<String>) {
    let Some(found) = found else { return (Step::Make, Vec::new()) };
    let mut notes = Vec::new();
    let (name, is) = (&disk.name, found.format.name());
    if found.twice {
        let other = other(found.format).name();
        notes.push(format!(
            "disk {name}: `{name}.{is}` is used; `{name}.{other}` lies beside it unused"
        ));
    } else if found.format != disk.format {
        notes.push(format!(
            "disk {name}: it exists as {is}; `format = \"{}\"` is ignored",
            disk.format.name()
        ));
    }
    notes.extend(outlived(disk, made));
    let step = match disk.size {
        Some(size) if size.bytes() > found.virtual_size => Step::Grow(found.format, size),
        Some(size) => {
            notes.extend(larger(disk, size, found.virtual_size));
            Step::Keep(found.format)
        }
        None => Step::Keep(found.format),
    };
    (step, notes)
}

/// The note that a disk, or the image it is made from, is larger than `size` says.
pub fn larger(disk: &Disk, size: Size, virtual_size: u64) -> Option<String> {
    (size.bytes() < virtual_size).then(|| {
        let is = Size::from_bytes(virtual_size);
        format!("disk {}: it stays {is}; a disk is never shrunk to {size}", disk.name)
    })
}

/// The other format.
pub const fn other(format: Format) -> Format {
    match format {
        Format::Qcow2 => Format::Raw,
        Format::Raw => Format::Qcow2,
    }
}

/// The note that the VM file has come to name another image than the disk was made from.
fn outlived(disk: &Disk, made: Option<&Made>) -> Option<String> {
    let made = made?;
    let spec::Source::Image(image) = &disk.source else { return None };
    let from = made.origin.as_deref().unwrap_or("nothing");
    let told = match (&image.checksum, &made.digest) {
        // The same bytes are the same image, wherever they came from.
        (Checksum::Digest(written), Some(digest)) if written == digest => return None,
        // By another hash function nothing can be said.
        (Checksum::Digest(written), Some(digest)) if written.algorithm() == digest.algorithm() => {
            format!("with {digest}")
        }
        _ if made.origin.as_deref() == Some(&reference::shown(&image.origin)) => return None,
        _ => String::new(),
    };
    let space = if told.is_empty() { "" } else { " " };
    Some(format!(
        "disk {}: it was made from {from}{space}{told} on {}; the image that is written now is ignored",
        disk.name,
        made.made_at.get(..10).unwrap_or(&made.made_at)
    ))
}

/// The record of a disk that is made now.
pub fn record(
    disk: &Disk,
    image: Option<(&Image, Option<&Digest>)>,
    base: Option<PathBuf>,
    made_at: String,
) -> Made {
    Made {
        origin: image.map(|(i, _)| reference::shown(&i.origin)),
        digest: image.and_then(|(_, d)| d.cloned()),
        clone: disk.clone,
        base,
        made_at,
    }
}

/// How a disk is made from an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The same bytes: reflinked or copied.
    Clone,
    /// Converted by qemu-img.
    Convert,
    /// A qcow2 file on top of it.
    Overlay,
}

/// How this disk is made from an image of this format.
pub fn how(disk: &Disk, image: Format) -> How {
    match disk.clone {
        spec::Clone::Overlay => How::Overlay,
        spec::Clone::Copy if disk.format == image => How::Clone,
        spec::Clone::Copy => How::Convert,
    }
}

/// The format that a new disk gets: an overlay can only be qcow2.
pub fn format(disk: &Disk) -> Format {
    match disk.clone {
        spec::Clone::Overlay => Format::Qcow2,
        spec::Clone::Copy => disk.format,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Bus, Media, Origin, Source};
    use crate::value::Algorithm;

    fn disk(size: Option<&str>) -> Disk {
        Disk {
            name: "root".parse().unwrap(),
            source: Source::Image(Box::new(Image {
                origin: Origin::Http("https://example.org/a.qcow2".into()),
                checksum: Checksum::Digest(digest('a')),
            })),
            size: size.map(|s| s.parse().unwrap()),
            format: Format::Qcow2,
            clone: spec::Clone::Copy,
            bus: Bus::Virtio,
            media: Media::Disk,
            read_only: false,
            cache: None,
            iothread: false,
            sector_size: None,
            limits: spec::DiskLimits::default(),
        }
    }

    fn digest(digit: char) -> Digest {
        Digest::new(Algorithm::Sha256, &digit.to_string().repeat(64)).unwrap()
    }

    fn found(gib: u64) -> Option<Found> {
        Some(Found { format: Format::Qcow2, virtual_size: gib << 30, twice: false })
    }

    fn made(origin: &str, digest: Option<Digest>) -> Made {
        Made {
            origin: Some(origin.into()),
            digest,
            clone: spec::Clone::Copy,
            base: None,
            made_at: "2026-01-02T03:04:05Z".into(),
        }
    }

    #[test]
    fn made_once_grown_never_shrunk() {
        assert_eq!(decide(&disk(Some("4G")), None, None), (Step::Make, vec![]));
        assert_eq!(decide(&disk(None), found(2), None), (Step::Keep(Format::Qcow2), vec![]));
        assert_eq!(decide(&disk(Some("2G")), found(2), None), (Step::Keep(Format::Qcow2), vec![]));
        let four = Size::from_gib(4).unwrap();
        assert_eq!(
            decide(&disk(Some("4G")), found(2), None),
            (Step::Grow(Format::Qcow2, four), vec![])
        );
        let (step, notes) = decide(&disk(Some("1G")), found(2), None);
        assert_eq!(step, Step::Keep(Format::Qcow2));
        assert_eq!(notes, ["disk root: it stays 2G; a disk is never shrunk to 1G"]);
    }

    #[test]
    fn a_disk_in_the_other_format_wins() {
        let raw = Found { format: Format::Raw, virtual_size: 1 << 30, twice: false };
        let (step, notes) = decide(&disk(None), Some(raw), None);
        assert_eq!(step, Step::Keep(Format::Raw));
        assert_eq!(notes, ["disk root: it exists as raw; `format = \"qcow2\"` is ignored"]);
        let twice = Found { format: Format::Qcow2, virtual_size: 1 << 30, twice: true };
        let (_, notes) = decide(&disk(None), Some(twice), None);
        assert_eq!(notes, ["disk root: `root.qcow2` is used; `root.raw` lies beside it unused"]);
    }

    #[test]
    fn a_changed_image_is_told() {
        let notes = |made: &Made| decide(&disk(None), found(2), Some(made)).1;
        let (same, other) = ("https://example.org/a.qcow2", "https://example.org/b.qcow2");
        assert!(notes(&made(same, Some(digest('a')))).is_empty());
        assert!(notes(&made(other, Some(digest('a')))).is_empty(), "the same bytes from elsewhere");
        assert!(notes(&made(same, None)).is_empty());
        assert_eq!(
            notes(&made(other, None)),
            [
                "disk root: it was made from https://example.org/b.qcow2 on 2026-01-02; the image that \
              is written now is ignored"
            ]
        );
        let changed = notes(&made(same, Some(digest('b'))));
        assert!(changed[0].contains(&format!("with sha256:{}", "b".repeat(64))), "{changed:?}");
    }

    #[test]
    fn an_overlay_is_qcow2_on_whatever() {
        let mut disk = disk(None);
        assert_eq!(how(&disk, Format::Qcow2), How::Clone);
        assert_eq!(how(&disk, Format::Raw), How::Convert);
        (disk.clone, disk.format) = (spec::Clone::Overlay, Format::Raw);
        assert_eq!((how(&disk, Format::Raw), format(&disk)), (How::Overlay, Format::Qcow2));
    }
}
