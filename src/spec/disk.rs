//! `[disk.NAME]`, and the flat key `diskSizeG` for the disk `root`.

use std::path::{Path, PathBuf};

use super::{
    choice::{Bus, Cache, Clone, Format, Media, SectorSize},
    disk_limits::{DiskLimits, LimitKeys},
    image::{Image, ImageKeys},
    reading::{At, Key, Reading},
    table::Table,
    text,
    written::{DiskSize, Whole},
};
use crate::value::{Label, Size, shown};

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `root`, or the name of the table.
    pub name: Label,
    /// The source of its content.
    pub source: Source,
    /// `size` (`diskSizeG` for `root`): the initial size, and the size to grow to; `None` is the
    /// size of the image.
    pub size: Option<Size>,
    /// `format`: of the file that qvm creates, or of the existing `path` or `device`.
    pub format: Format,
    /// `clone`: how the disk is created from its image.
    pub clone: Clone,
    /// `bus`: the emulated controller.
    pub bus: Bus,
    /// `media`: a disk or a CD.
    pub media: Media,
    /// `readOnly`.
    pub read_only: bool,
    /// `cache`: whether the host's page cache is used; `None` is the default of its source.
    pub cache: Option<Cache>,
    /// `iothread`: whether its requests have a thread of their own.
    pub iothread: bool,
    /// `logicalBlockSize`: the sectors that the guest sees; `None` is that of the device, or 512.
    pub sector_size: Option<SectorSize>,
    /// `iops`, `bandwidth` and their relatives.
    pub limits: DiskLimits,
}

impl Disk {
    /// Whether the host's page cache is used: as written, or the default of the disk's source.
    pub fn effective_cache(&self) -> Cache {
        let default = match self.source {
            Source::Device(_) => Cache::None,
            Source::File(_) | Source::Image(_) | Source::Blank | Source::Existing => {
                Cache::Writeback
            }
        };
        self.cache.unwrap_or(default)
    }

    /// Returns true if this and another disk are the same file or device and one of them is
    /// writable.
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        self.source.own().is_some()
            && self.source.own() == other.source.own()
            && !(self.read_only && other.read_only)
    }
}

impl Source {
    /// Returns the operator's file or device, if the disk is one.
    pub(super) fn own(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Device(path) => Some(path),
            Self::Image(_) | Self::Blank | Self::Existing => None,
        }
    }
}

/// The source of a disk's content, determined by the key that is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `[disk.NAME.image]`, or `[image]` for `root`: qvm creates the disk once in the VM's state
    /// directory.
    Image(Box<Image>),
    /// Only `size`: qvm creates a blank disk once in the VM's state directory.
    Blank,
    /// No key: an existing disk in the VM's state directory.
    Existing,
    /// `path`: a file of the operator, which qvm neither creates nor grows.
    File(PathBuf),
    /// `device`: a block device of the operator, always raw.
    Device(PathBuf),
}

/// The keys of a disk as written.
pub(super) struct DiskKeys {
    /// The table header or a flat key; `None` if there is neither.
    at: Option<At>,
    size: Key<Size>,
    format: Key<Format>,
    path: Key<String>,
    device: Key<String>,
    image: Option<ImageKeys>,
    clone: Key<Clone>,
    bus: Key<Bus>,
    media: Key<Media>,
    read_only: Key<bool>,
    cache: Key<Cache>,
    iothread: Key<bool>,
    sector_size: Key<SectorSize>,
    limits: LimitKeys,
}

/// The flat keys of the disk `root`: `diskSizeG` and `[image]`.
pub(super) struct FlatDisk {
    size: Key<Size>,
    image: Option<ImageKeys>,
    clone: Key<Clone>,
}

impl FlatDisk {
    /// Parses them from the top level.
    pub(super) fn take(r: &mut Reading<'_>, top: &mut Table<'_>) -> Self {
        // 1 PiB, the limit of `size`.
        let size: Key<Whole<1, { 1 << 20 }>> = top.take(r, "diskSizeG");
        let gib = |Whole(gib)| u64::try_from(gib).ok().and_then(Size::from_gib);
        let (image, clone) = match top.take_table(r, "image") {
            Some(table) => {
                let (image, clone) = ImageKeys::take_flat(r, table);
                (Some(image), clone)
            }
            None => (None, Key::ABSENT),
        };
        Self { size: Key { at: size.at, value: size.value.and_then(gib) }, image, clone }
    }
}

impl DiskKeys {
    /// Parses `[disk.NAME]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>) -> Self {
        let size: Key<DiskSize> = table.take(r, "size");
        let keys = Self {
            at: Some(table.at.clone()),
            size: Key { at: size.at, value: size.value.map(|DiskSize(size)| size) },
            format: table.take(r, "format"),
            path: table.take(r, "path"),
            device: table.take(r, "device"),
            clone: table.take(r, "clone"),
            bus: table.take(r, "bus"),
            media: table.take(r, "media"),
            read_only: table.take(r, "readOnly"),
            cache: table.take(r, "cache"),
            iothread: table.take(r, "iothread"),
            sector_size: table.take(r, "logicalBlockSize"),
            limits: LimitKeys::take(r, &mut table),
            image: table.take_table(r, "image").map(|image| ImageKeys::take(r, image)),
        };
        table.finish(r);
        keys
    }

    /// Merges the flat keys of the disk `root` and its own table.
    pub(super) fn root(r: &mut Reading<'_>, flat: FlatDisk, named: Option<Self>) -> Self {
        let named = named.unwrap_or(Self {
            at: None,
            size: Key::ABSENT,
            format: Key::ABSENT,
            path: Key::ABSENT,
            device: Key::ABSENT,
            image: None,
            clone: Key::ABSENT,
            bus: Key::ABSENT,
            media: Key::ABSENT,
            read_only: Key::ABSENT,
            cache: Key::ABSENT,
            iothread: Key::ABSENT,
            sector_size: Key::ABSENT,
            limits: LimitKeys::ABSENT,
        });
        let header = |image: &Option<ImageKeys>| Key {
            at: image.as_ref().map(|image| image.at().clone()),
            value: Some(()),
        };
        r.either(header(&flat.image), header(&named.image));
        Self {
            size: r.either(flat.size, named.size),
            image: flat.image.or(named.image),
            clone: r.either(flat.clone, named.clone),
            ..named
        }
    }

    /// Returns the table header, or the flat key instead of it.
    pub(super) fn header(&self) -> Option<&At> {
        self.at.as_ref()
    }

    /// Returns the position of the key of the operator's file or device.
    pub(super) fn own(&self) -> Option<&At> {
        self.path.at.as_ref().or(self.device.at.as_ref())
    }

    /// Checks the keys against each other and returns the disk.
    pub(super) fn build(self, r: &mut Reading<'_>, name: Label) -> Disk {
        let cdrom = self.media.value == Some(Media::Cdrom);
        self.check_source(r, &name, cdrom);
        self.check_device(r, cdrom);
        if cdrom {
            self.check_cdrom(r);
        }
        let path = self.path.good().and_then(|(at, path)| text::path(r, at, path));
        let format = self.format(r, path.as_deref(), cdrom);
        let clone = self.clone.value.unwrap_or_default();
        if let (Some(at), Clone::Overlay, Format::Raw) = (&self.clone.at, clone, format) {
            let message = "an overlay must be qcow2, but the format of this disk is raw";
            r.refuse(at, message, Some("remove `format`".into()));
        }
        let device = self.device.good().and_then(|(at, device)| device_path(r, at, device));
        let source = if let Some(path) = path {
            Source::File(path)
        } else if let Some(device) = device {
            Source::Device(device)
        } else if let Some(image) = self.image {
            image.build(r).map_or(Source::Existing, |image| Source::Image(Box::new(image)))
        } else if self.size.at.is_some() {
            Source::Blank
        } else {
            Source::Existing
        };
        let read_only = self.read_only.value.unwrap_or_default();
        if let (Source::Blank, true, Some(at)) = (&source, read_only, &self.read_only.at) {
            let message = "a blank disk cannot be read-only";
            r.refuse(at, message, Some("remove `readOnly`".into()));
        }
        Disk {
            name,
            source,
            size: self.size.value,
            format,
            clone,
            bus: if cdrom { Bus::Sata } else { self.bus.value.unwrap_or_default() },
            media: self.media.value.unwrap_or_default(),
            read_only: read_only || cdrom,
            cache: self.cache.value,
            iothread: self.iothread.value.unwrap_or_default(),
            sector_size: self.sector_size.value,
            limits: self.limits.build(r),
        }
    }

    /// What only some buses can do.
    fn check_device(&self, r: &mut Reading<'_>, cdrom: bool) {
        let bus = if cdrom { Bus::Sata } else { self.bus.value.unwrap_or_default() };
        if let (Some((at, true)), true) = (self.iothread.good(), bus != Bus::Virtio) {
            let hint = "leave `iothread` out, or write `bus = \"virtio\"`";
            r.refuse(at, "only a disk on virtio can have its own thread", Some(hint.into()));
        }
        if let (Some((at, SectorSize::B4096)), Bus::Sata) = (self.sector_size.good(), bus) {
            let hint = "leave `logicalBlockSize` out, or choose another `bus`";
            r.refuse(at, "a disk on SATA always has sectors of 512 bytes", Some(hint.into()));
        }
    }

    /// Allows at most one source, and only keys that fit to it.
    fn check_source(&self, r: &mut Reading<'_>, name: &Label, cdrom: bool) {
        let image = self.image.as_ref().map(|image| image.at());
        let own = self.own();
        let mut sources: Vec<&At> =
            [self.path.at.as_ref(), self.device.at.as_ref(), image].into_iter().flatten().collect();
        sources.sort_by_key(|at| at.span.start);
        if let [first, second, ..] = sources.as_slice() {
            let line = r.line(first.span.start);
            r.refuse(
                second,
                format!("`{}` in line {line} already sets the content of the disk", first.key),
                Some("keep one of the two".into()),
            );
        }
        if let (Some(size), Some(own), false) = (&self.size.at, own, cdrom) {
            r.refuse(
                size,
                format!("qvm neither creates nor grows the file or device of `{}`", own.key),
                Some("remove the size; use `qemu-img resize` to grow an image file".into()),
            );
        }
        if let (Some(clone), None, false) = (&self.clone.at, image, cdrom) {
            r.refuse(clone, "the disk has no image to be created from", None);
        }
        if let (Some(at), true, None) = (&self.at, sources.is_empty(), &self.size.at)
            && name.as_str() != Label::ROOT
            && !cdrom
        {
            let hint = format!(
                "write `size` for a blank disk, `path`, `device`, or a table `[{}.image]`",
                at.key
            );
            r.refuse(at, "the disk has no content", Some(hint));
        }
    }

    /// A CD is an existing file or device, read-only, on SATA.
    fn check_cdrom(&self, r: &mut Reading<'_>) {
        let image = self.image.as_ref().map(|image| image.at());
        for at in [self.size.at.as_ref(), self.clone.at.as_ref(), image].into_iter().flatten() {
            let message = "a CD must be an existing file or device";
            r.refuse(at, message, Some("name it with `path` or `device`".into()));
        }
        if let (Some(at), None, None) = (&self.media.at, &self.path.at, &self.device.at) {
            let hint = "write `path = …` with the ISO file";
            r.refuse(at, "the drive has no medium", Some(hint.into()));
        }
        if let Some((at, Bus::Virtio | Bus::Nvme)) = self.bus.good() {
            r.refuse(at, "a CD drive is always on SATA", Some("remove `bus`".into()));
        }
        if let Some((at, false)) = self.read_only.good() {
            r.refuse(at, "a CD is always read-only", Some("remove `readOnly`".into()));
        }
    }

    /// Returns the written format or the one implied by other keys. A file of the operator is never
    /// probed: a guest could write a qcow2 header into a raw disk and thereby read any file of the
    /// host.
    fn format(&self, r: &mut Reading<'_>, path: Option<&Path>, cdrom: bool) -> Format {
        if let (Some((at, Format::Qcow2)), Some(_)) = (self.format.good(), &self.device.at) {
            r.refuse(at, "a device is always raw", Some("remove `format`".into()));
        }
        if let (Some(format), None) = (self.format.value, &self.device.at) {
            return format;
        }
        if cdrom || self.device.at.is_some() {
            return Format::Raw;
        }
        let Some((path, at)) = path.zip(self.path.at.as_ref()) else {
            return Format::default();
        };
        match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("qcow2") => Format::Qcow2,
            Some("raw") => Format::Raw,
            _ if self.format.at.is_some() => Format::default(),
            _ => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let message = format!(
                    "the format cannot be derived from the file name \
                    `{}`",
                    shown(&name)
                );
                let hint = "add `format = \"qcow2\"` or `format = \"raw\"`";
                r.refuse(at, message, Some(hint.into()));
                Format::default()
            }
        }
    }
}

fn device_path(r: &mut Reading<'_>, at: &At, device: &str) -> Option<PathBuf> {
    if !device.starts_with('/') {
        let message = format!("`{}` is not an absolute path", shown(device));
        let hint = "write an absolute path, preferably one of `/dev/disk/by-id/`";
        r.wrong(at, message, Some(hint.into()));
        return None;
    }
    text::path(r, at, device)
}
