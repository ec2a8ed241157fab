//! The changes of a running machine in the run record: texts by the keys of the VM file, so that
//! earlier and later versions of qvm adopt each other's QEMU processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    str::FromStr,
};

use serde::de::DeserializeOwned;

use super::{
    key,
    running_machine::RunningMachine,
    table::{Table, names},
};
use crate::{
    spec::{
        AntiSpoof, Checksum, Clone as DiskClone, Disk, DiskLimits, Format, Image, Limit, Link, Nic,
        Origin, SectorSize, Source, Vm,
    },
    value::{Digest, Label, Size},
};

/// The values of changed keys; `None` for removed ones.
pub type Applied = BTreeMap<String, Option<String>>;

/// Returns the keys whose values differ, with the values of `after`.
pub fn entries(before: &RunningMachine, after: &RunningMachine) -> Applied {
    let (before, after) = (texts(before), texts(after));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |key: &&&String| before.get(**key) != after.get(**key);
    keys.iter().filter(differs).map(|key| ((**key).clone(), after.get(*key).cloned())).collect()
}

fn texts(machine: &RunningMachine) -> BTreeMap<String, String> {
    let mut texts: BTreeMap<String, String> = machine.disks.iter().flat_map(Table::texts).collect();
    texts.extend(machine.nics.iter().flat_map(Table::texts));
    texts.insert(key::MEM.to_owned(), machine.mem.to_string());
    texts.extend(names(&machine.disks).map(|names| (key::DISK.to_owned(), names)));
    texts.extend(names(&machine.nics).map(|names| (key::NIC.to_owned(), names)));
    texts
}

/// Returns the machine of a QEMU started from `started` with these changes, and the keys whose
/// values this version cannot parse.
pub fn machine(started: &Vm, applied: &Applied) -> (RunningMachine, Vec<String>) {
    let mut machine = RunningMachine::started_from(started.clone());
    let mut reader = Reader { applied, unread: vec![] };
    reader.value(key::MEM.to_owned(), &mut machine.mem);
    machine.is_replugged = applied.contains_key(key::DISK) || applied.contains_key(key::NIC);
    machine.disks = reader.tables(&started.disks, "bus", Reader::change_disk, Reader::new_disk);
    machine.nics = reader.tables(&started.nics, "model", Reader::change_nic, Reader::new_nic);
    (machine, reader.unread)
}

struct Reader<'a> {
    applied: &'a Applied,
    unread: Vec<String>,
}

impl Reader<'_> {
    /// Parses the value of a key that always has one.
    fn value<T: FromStr>(&mut self, key: String, value: &mut T) {
        let Some(text) = self.applied.get(&key) else { return };
        match text.as_deref().and_then(|text| text.parse().ok()) {
            Some(read) => *value = read,
            None => self.unread.push(key),
        }
    }

    /// Parses the value of a key with `read`; `None` if it has none.
    fn text<T>(&mut self, key: String, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.applied.get(&key)?.as_deref()?;
        let value = read(text);
        if value.is_none() {
            self.unread.push(key);
        }
        value
    }

    /// Applies the changes of disks or NICs. A hotplugged one has all its keys, including `always`;
    /// others may have only changeable keys.
    fn tables<T: Table + Clone>(
        &mut self,
        started: &[T],
        always: &str,
        change: fn(&mut Self, &mut T),
        new: fn(&mut Self, Label) -> Option<T>,
    ) -> Vec<T> {
        let order: Vec<String> = match self.applied.get(T::TABLE) {
            Some(names) => {
                names.iter().flat_map(|names| names.split(", ")).map(str::to_owned).collect()
            }
            None => started.iter().map(|one| one.name().to_string()).collect(),
        };
        let mut all = vec![];
        for name in order {
            let one = name.parse::<Label>().ok().and_then(|label| {
                let is_new = self.applied.get(&T::key(&label, always)).is_some_and(Option::is_some);
                match started.iter().find(|one| *one.name() == label).filter(|_| !is_new) {
                    Some(one) => {
                        let mut one = one.clone();
                        change(self, &mut one);
                        Some(one)
                    }
                    None => new(self, label),
                }
            });
            match one {
                Some(one) => all.push(one),
                None => self.unread.push(format!("{}.{name}", T::TABLE)),
            }
        }
        all
    }

    fn change_disk(&mut self, disk: &mut Disk) {
        let size = self.text(key::of_disk(&disk.name, "size"), parse);
        disk.size = size.or(disk.size);
        let old = disk.limits;
        for (kind, limit) in old.iter() {
            let mut rate = |key: &str, old: Option<u64>| {
                let key = key::of_disk(&disk.name, key);
                match self.applied.contains_key(&key) {
                    true => self.rate(key, kind.is_bytes),
                    false => old,
                }
            };
            let rate_of = rate(kind.key, limit.rate);
            let burst = rate(kind.burst, limit.burst);
            let key = key::of_disk(&disk.name, kind.burst_sec);
            let burst_sec = match self.applied.contains_key(&key) {
                true => self.text(key, parse),
                false => limit.burst_sec,
            };
            disk.limits.set(kind, Limit { rate: rate_of, burst, burst_sec });
        }
    }

    /// Reads a rate: a number, or a size.
    fn rate(&mut self, key: String, is_bytes: bool) -> Option<u64> {
        match is_bytes {
            true => self.text(key, parse::<Size>).map(Size::bytes),
            false => self.text(key, parse),
        }
    }

    fn new_disk(&mut self, name: Label) -> Option<Disk> {
        let key = |property| key::of_disk(&name, property);
        let size = self.text(key("size"), parse);
        let path = self.text(key("path"), |text| Some(PathBuf::from(text)));
        let device = self.text(key("device"), |text| Some(PathBuf::from(text)));
        let image = self.text(key("image"), |text| Some(image(text)));
        let written = self.text(key("format"), word);
        let source = match (path, device, image) {
            (Some(path), _, _) => Source::File(path),
            (None, Some(device), _) => Source::Device(device),
            (None, None, Some(image)) => Source::Image(Box::new(image)),
            (None, None, None) => Source::Blank,
        };
        let format = match source {
            // A device is always raw and has no `format`.
            Source::Device(_) => Format::Raw,
            _ => written?,
        };
        let clone = self.text(key("clone"), word).unwrap_or_default();
        let clone: DiskClone = clone;
        let bus = self.text(key("bus"), word)?;
        let media = self.text(key("media"), word)?;
        let read_only = self.text(key("readOnly"), parse)?;
        let cache = self.text(key("cache"), word);
        let iothread = self.text(key("iothread"), parse).unwrap_or(false);
        let sector_size = self.text(key("logicalBlockSize"), SectorSize::parse);
        let limits = DiskLimits::default();
        let mut disk = Disk {
            source,
            size,
            format,
            clone,
            bus,
            media,
            read_only,
            name,
            cache,
            iothread,
            sector_size,
            limits,
        };
        self.change_disk(&mut disk);
        Some(disk)
    }

    fn change_nic(&mut self, nic: &mut Nic) {
        let key = |property| key::of_nic(&nic.name, property);
        if let Link::Bridge { bridge, .. } = &mut nic.link {
            let read = self.text(key("bridge"), parse);
            *bridge = read.unwrap_or_else(|| bridge.clone());
        }
        if let Some(state) = self.text(key("link"), word) {
            nic.state = state;
        }
        if self.applied.contains_key(&key("antiSpoof")) {
            nic.anti_spoof = self.anti_spoof(key("antiSpoof"));
        }
        if self.applied.contains_key(&key("isolated")) {
            nic.isolated = self.text(key("isolated"), parse).unwrap_or(false);
        }
    }

    fn new_nic(&mut self, name: Label) -> Option<Nic> {
        let key = |property| key::of_nic(&name, property);
        let bridge = self.text(key("bridge"), parse);
        let tap = self.text(key("tap"), parse);
        let link = match bridge.zip(tap) {
            Some((bridge, tap)) => Link::Bridge { bridge, tap },
            None => Link::User { forward: self.list(key("forward")) },
        };
        Some(Nic {
            mac: self.text(key("mac"), parse),
            ip: self.text(key("ip"), parse),
            gateway: self.text(key("gateway"), parse),
            dns: self.list(key("dns")),
            mtu: self.text(key("mtu"), parse),
            model: self.text(key("model"), word)?,
            state: self.text(key("link"), word)?,
            anti_spoof: self.anti_spoof(key("antiSpoof")),
            isolated: self.text(key("isolated"), parse).unwrap_or(false),
            link,
            name,
        })
    }

    fn anti_spoof(&mut self, key: String) -> AntiSpoof {
        match self.text(key, parse::<bool>) {
            Some(true) => AntiSpoof::Required,
            Some(false) => AntiSpoof::Off,
            None => AntiSpoof::WherePossible,
        }
    }

    fn list<T: FromStr>(&mut self, key: String) -> Vec<T> {
        let all = |text: &str| text.split(", ").map(|one| one.parse().ok()).collect();
        self.text(key, all).unwrap_or_default()
    }
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// Parses an enum from its word in the VM file.
fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(text.into()).ok()
}

/// Parses an image: its URL or path, then optionally a space and the checksum or the URL of the
/// checksums.
fn image(text: &str) -> Image {
    let origin = |text: &str| match text.split_once("://") {
        Some(("http" | "https", _)) => Origin::Http(text.to_owned()),
        _ => Origin::Path(text.into()),
    };
    let split = text.rsplit_once(' ').and_then(|(before, last)| {
        let digest = last.parse::<Digest>().map(Checksum::Digest);
        let sums = || last.contains("://").then(|| Checksum::Sums(last.to_owned()));
        Some((before, digest.ok().or_else(sums)?))
    });
    match split {
        Some((before, checksum)) => Image { origin: origin(before), checksum },
        None => Image { origin: origin(text), checksum: Checksum::None },
    }
}
