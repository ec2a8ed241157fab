//! The keys of a disk: the text of each value, and when a change of it takes effect.
//!
//! [`Table::rows`] takes a [`Disk`] apart without `..`: a field without a row does not compile.

#![deny(unused_variables)]

use super::{
    change::ChangeKind,
    key,
    row::{Effect, Row, Sides, row, text, word},
    running_machine::LiveChange,
    table::Table,
};
use crate::{
    spec::{
        Bus, Checksum, Disk, Image, Limit, LimitKind, Media, Origin, SectorSize, Source, Vm, amount,
    },
    value::Label,
};

/// Returns true if the disk can be hotplugged. The first disk is part of the machine.
fn is_pluggable(disk: &Disk, place: usize) -> bool {
    place > 0 && disk.media == Media::Disk && disk.bus != Bus::Sata
}

impl Table for Disk {
    const TABLE: &'static str = key::DISK;

    fn name(&self) -> &Label {
        &self.name
    }

    fn key(name: &Label, property: &str) -> String {
        key::of_disk(name, property)
    }

    fn rows(&self) -> Vec<Row<Self>> {
        rows(self)
    }

    fn summary(&self) -> String {
        summary(self)
    }

    fn added(&self, place: usize, _: &Vm) -> ChangeKind {
        match is_pluggable(self, place) {
            true => ChangeKind::Live(LiveChange::AddDisk(Box::new(self.clone()))),
            false => ChangeKind::NextReboot,
        }
    }

    fn removed(&self, place: usize) -> ChangeKind {
        match is_pluggable(self, place) {
            true => ChangeKind::Live(LiveChange::RemoveDisk(self.name.clone())),
            false => ChangeKind::NextReboot,
        }
    }
}

fn rows(disk: &Disk) -> Vec<Row<Disk>> {
    use Effect::{Depends, NewDisk, NextReboot};
    let Disk {
        name: _,
        source,
        size,
        format,
        clone,
        bus,
        media,
        read_only,
        cache: _,
        iothread,
        sector_size,
        limits,
    } = disk;
    let [format, clone] = [word(format), word(clone)].map(Some);
    let (image, path, device, format, clone) = match source {
        Source::Image(image) => (Some(text_of_image(image)), None, None, format, clone),
        Source::Blank => (None, None, None, format, None),
        Source::Existing => (None, None, None, None, None),
        Source::File(path) => (None, Some(path.display().to_string()), None, format, None),
        Source::Device(path) => (None, None, Some(path.display().to_string()), None, None),
    };
    let sector_size = sector_size.map(SectorSize::bytes);
    let mut rows = vec![
        row("size", text(size.as_ref()), Depends("live (the disk can only grow)", size_change)),
        row("image", image, NewDisk),
        row("path", path, NextReboot),
        row("device", device, NextReboot),
        row("format", format, Depends("new disk", format_change)),
        row("clone", clone, NewDisk),
        row("bus", Some(word(bus)), NextReboot),
        row("media", Some(word(media)), NextReboot),
        row("readOnly", text(Some(read_only)), NextReboot),
        row("cache", Some(word(&disk.effective_cache())), NextReboot),
        row("iothread", text(Some(iothread)), NextReboot),
        row("logicalBlockSize", text(sector_size), NextReboot),
    ];
    rows.extend(limits.iter().flat_map(|(kind, limit)| limit_rows(kind, limit)));
    rows
}

/// The keys of a limit. A change of any of them sets all limits of the disk.
fn limit_rows(kind: LimitKind, limit: Limit) -> [Row<Disk>; 3] {
    fn live(key: &'static str, sides: &Sides<'_, Disk>) -> ChangeKind {
        let Disk { name, limits, .. } = sides.written;
        ChangeKind::Live(LiveChange::LimitDisk {
            disk: name.clone(),
            key,
            limits: Box::new(*limits),
        })
    }
    let amount = |rate: Option<u64>| rate.map(|rate| amount(rate, kind.is_bytes));
    [
        row(kind.key, amount(limit.rate), Effect::Keyed("live", live)),
        row(kind.burst, amount(limit.burst), Effect::Keyed("live", live)),
        row(kind.burst_sec, text(limit.burst_sec), Effect::Keyed("live", live)),
    ]
}

fn text_of_image(image: &Image) -> String {
    let Image { origin, checksum } = image;
    let origin = text_of_origin(origin);
    match checksum {
        Checksum::Digest(digest) => format!("{origin} {digest}"),
        Checksum::Sums(sums) => format!("{origin} {sums}"),
        Checksum::None => origin,
    }
}

fn text_of_origin(origin: &Origin) -> String {
    match origin {
        Origin::Http(url) => url.clone(),
        Origin::Path(path) => path.display().to_string(),
    }
}

fn summary(disk: &Disk) -> String {
    let source = match &disk.source {
        Source::Image(image) => Some(text_of_origin(&image.origin)),
        Source::File(path) | Source::Device(path) => Some(path.display().to_string()),
        Source::Blank | Source::Existing => None,
    };
    let parts = [text(disk.size.as_ref()), source, Some(word(&disk.bus))];
    parts.into_iter().flatten().collect::<Vec<String>>().join(", ")
}

fn size_change(sides: &Sides<'_, Disk>) -> ChangeKind {
    match (sides.running.size, sides.written.size) {
        (Some(from), Some(to)) if to < from => ChangeKind::Destructive,
        (_, Some(to)) => ChangeKind::Live(LiveChange::GrowDisk(sides.written.name.clone(), to)),
        (_, None) => ChangeKind::Ignored,
    }
}

/// QEMU uses a changed format of an operator's file when it opens the file again.
fn format_change(sides: &Sides<'_, Disk>) -> ChangeKind {
    match sides.running.source {
        Source::File(_) => ChangeKind::NextReboot,
        _ => ChangeKind::Ignored,
    }
}
