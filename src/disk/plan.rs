//! Decides what to do with a disk, from what exists.
//!
//! The rule: an existing disk has precedence. It is never re-created, shrunk or changed except by
//! growing, regardless of the image in the VM file; ignored keys are reported.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::reference;
use crate::{
    spec::{self, Checksum, Disk, Format, Image},
    value::{Digest, Note, NoteCode, Size},
};

/// `NAME.origin.json` beside a disk: its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// The URL or path of the image; `None` for a blank disk.
    pub origin: Option<String>,
    /// The image's digest, if verified.
    pub digest: Option<Digest>,
    /// How the disk was created.
    pub clone: spec::Clone,
    /// The base of an overlay.
    pub base: Option<PathBuf>,
    /// The time of creation, RFC 3339.
    pub made_at: String,
}

/// An existing disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its format.
    pub format: Format,
    /// The virtual size in bytes.
    pub virtual_size: u64,
    /// A disk of the other format also exists.
    pub twice: bool,
}

/// The action for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Keep the existing disk.
    Keep(Format),
    /// Grow the existing disk.
    Grow(Format, Size),
    /// Create the disk.
    Make,
}

/// Returns what to do with a disk of qvm, and notes for the operator.
pub fn decide(disk: &Disk, found: Option<Found>, made: Option<&Made>) -> (Step, Vec<Note>) {
    let Some(found) = found else { return (Step::Make, Vec::new()) };
    let mut notes = Vec::new();
    let (name, is) = (&disk.name, found.format.name());
    if found.twice {
        let other = other(found.format).name();
        let text = format!(
            "disk {name}: `{name}.{is}` is used; `{name}.{other}` also exists and is not used"
        );
        notes.push(Note::new(NoteCode::DiskFileUnused, text).key(key(disk)));
    } else if found.format != disk.format {
        let format = disk.format.name();
        let text = format!("disk {name}: exists as {is}; `format = \"{format}\"` is ignored");
        notes.push(Note::new(NoteCode::DiskFormatKept, text).key(key(disk)));
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

/// Returns a note if a disk or its image is larger than `size`.
pub fn larger(disk: &Disk, size: Size, virtual_size: u64) -> Option<Note> {
    (size.bytes() < virtual_size).then(|| {
        let is = Size::from_bytes(virtual_size);
        let text =
            format!("disk {}: remains {is}; qvm does not shrink disks, here to {size}", disk.name);
        Note::new(NoteCode::DiskNotShrunk, text).key(key(disk))
    })
}

/// Returns the table of the disk in the VM file, such as `disk.data`.
pub fn key(disk: &Disk) -> String {
    format!("disk.{}", disk.name)
}

/// Returns the other format.
pub const fn other(format: Format) -> Format {
    match format {
        Format::Qcow2 => Format::Raw,
        Format::Raw => Format::Qcow2,
    }
}

/// Returns a note if the VM file names another image than the disk was created from.
fn outlived(disk: &Disk, made: Option<&Made>) -> Option<Note> {
    let made = made?;
    let spec::Source::Image(image) = &disk.source else { return None };
    let from = made.origin.as_deref().unwrap_or("nothing");
    let digest_text = match (&image.checksum, &made.digest) {
        // Images with the same digest are equal, whatever their origin.
        (Checksum::Digest(written), Some(digest)) if written == digest => return None,
        // Digests of different hash functions cannot be compared.
        (Checksum::Digest(written), Some(digest)) if written.algorithm() == digest.algorithm() => {
            format!("with {digest}")
        }
        _ if made.origin.as_deref() == Some(&reference::shown(&image.origin)) => return None,
        _ => String::new(),
    };
    let space = if digest_text.is_empty() { "" } else { " " };
    let text = format!(
        "disk {}: was created from {from}{space}{digest_text} on {}; the image in the VM file is \
         ignored",
        disk.name,
        made.made_at.get(..10).unwrap_or(&made.made_at)
    );
    Some(Note::new(NoteCode::DiskImageChanged, text).key(key(disk)))
}

/// Returns the record of a new disk.
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

/// How a disk is created from an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A reflink or a copy.
    Clone,
    /// A conversion by qemu-img.
    Convert,
    /// A qcow2 overlay.
    Overlay,
}

/// Returns how this disk is created from an image of this format.
pub fn how(disk: &Disk, image: Format) -> How {
    match disk.clone {
        spec::Clone::Overlay => How::Overlay,
        spec::Clone::Copy if disk.format == image => How::Clone,
        spec::Clone::Copy => How::Convert,
    }
}

/// Returns the format of a new disk: qcow2 for an overlay.
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
    fn disk_is_grown_but_never_shrunk() {
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
        assert!(notes.len() == 1 && notes[0].is_of(NoteCode::DiskNotShrunk, "disk.root"));
    }

    #[test]
    fn existing_disk_of_other_format_is_used() {
        let raw = Found { format: Format::Raw, virtual_size: 1 << 30, twice: false };
        let (step, notes) = decide(&disk(None), Some(raw), None);
        assert_eq!(step, Step::Keep(Format::Raw));
        assert!(notes.len() == 1 && notes[0].code == NoteCode::DiskFormatKept, "{notes:?}");
        let twice = Found { format: Format::Qcow2, virtual_size: 1 << 30, twice: true };
        let (_, notes) = decide(&disk(None), Some(twice), None);
        assert!(notes.len() == 1 && notes[0].code == NoteCode::DiskFileUnused, "{notes:?}");
    }

    #[test]
    fn changed_image_is_reported() {
        let notes = |made: &Made| decide(&disk(None), found(2), Some(made)).1;
        let (same, other) = ("https://example.org/a.qcow2", "https://example.org/b.qcow2");
        assert!(notes(&made(same, Some(digest('a')))).is_empty());
        assert!(notes(&made(other, Some(digest('a')))).is_empty(), "the same bytes from elsewhere");
        assert!(notes(&made(same, None)).is_empty());
        let from_other = notes(&made(other, None));
        assert!(from_other.len() == 1 && from_other[0].code == NoteCode::DiskImageChanged);
        assert!(from_other[0].text.contains(other), "{from_other:?}");
        let changed = notes(&made(same, Some(digest('b'))));
        assert!(
            changed[0].text.contains(&format!("with sha256:{}", "b".repeat(64))),
            "{changed:?}"
        );
    }

    #[test]
    fn overlay_is_always_qcow2() {
        let mut disk = disk(None);
        assert_eq!(how(&disk, Format::Qcow2), How::Clone);
        assert_eq!(how(&disk, Format::Raw), How::Convert);
        (disk.clone, disk.format) = (spec::Clone::Overlay, Format::Raw);
        assert_eq!((how(&disk, Format::Raw), format(&disk)), (How::Overlay, Format::Qcow2));
    }
}
