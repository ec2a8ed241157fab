//! The QEMU devices of disks, seed, flash and NICs.
//!
//! IDs have a prefix for their kind (`disk-`, `nic-`, `net-`, `node-`), so that labels of different
//! kinds cannot collide. Fixed devices, the first disk and the first NIC have fixed slots on
//! `pcie.0`, so that another disk does not rename the guest's network interface. Each further disk
//! and NIC has its own root port, for hotplug.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub use super::block_nodes::{
    DiskParts, disk_of_node, file_node_of, format_node, iothread, limits, node, overlay_file_node,
    overlay_node, overlay_nodes, overlay_set, throttle_group,
};
use super::{
    block_nodes::{NodeNames, file_node, nodes, parts},
    disk_file::DiskFile,
    fd,
    fdset::{Access, Files},
    firmware::SelectedFirmware,
};
use crate::{
    spec::{Bus, Disk, Format, Link, Media, Model, Nic, SectorSize, Vm},
    value::{Label, MacAddr},
};

pub(crate) const RNG_SLOT: usize = 0x02;
pub(crate) const BALLOON_SLOT: usize = 0x03;
pub(crate) const PORTS_SLOT: usize = 0x04;
pub(crate) const VGA_SLOT: usize = 0x05;
pub(crate) const USB_SLOT: usize = 0x06;
const DISK_SLOT: usize = 0x08;
const NIC_SLOT: usize = 0x10;
/// After the first disk, so that the guest's first virtio disk, `vda`, is `root`.
const SEED_SLOT: usize = 0x18;
/// The slots of the root ports, with eight functions each.
const NIC_PORTS_SLOT: usize = 0x1b;
const DISK_PORTS_SLOT: usize = 0x1c;
/// The number of root ports for disks: one for each, since the first disk may be on SATA.
pub const DISK_PORTS: usize = Vm::MAX_PCI_DISKS;
/// The number of root ports for NICs: the first NIC needs none.
pub const NIC_PORTS: usize = Vm::MAX_NICS - 1;

const _: () = assert!(DISK_PORTS <= 8 && NIC_PORTS <= 8);

/// A path that is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path `{}` is not UTF-8, which QEMU's JSON options require", .0.display())]
pub struct BadPath(pub PathBuf);

/// An option with its JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Argument {
    pub(crate) option: &'static str,
    pub(crate) value: Value,
}

fn blockdev(value: Value) -> Argument {
    Argument { option: "-blockdev", value }
}

fn device(value: Value) -> Argument {
    Argument { option: "-device", value }
}

/// Adds a slot on the root bus to `value`.
pub(crate) fn at(mut value: Value, slot: usize) -> Value {
    value["bus"] = "pcie.0".into();
    value["addr"] = format!("{slot:#04x}").into();
    value
}

/// The location of a device on the guest's PCI bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PciLocation {
    /// A fixed slot of the root bus.
    Slot(usize),
    /// A root port.
    Port(String),
}

impl PciLocation {
    fn put(&self, mut device: Value) -> Value {
        match self {
            Self::Slot(slot) => at(device, *slot),
            Self::Port(port) => {
                device["bus"] = port.as_str().into();
                device
            }
        }
    }
}

/// Returns the name of a root port for disks.
pub fn disk_port(index: usize) -> String {
    format!("port-disk{index}")
}

/// Returns the name of a root port for NICs.
pub fn nic_port(index: usize) -> String {
    format!("port-nic{index}")
}

/// Returns all root ports.
pub(crate) fn ports() -> impl Iterator<Item = Value> {
    let of = |slot: usize, count: usize, id: fn(usize) -> String| {
        (0..count).map(move |nr| (id(nr), format!("{slot:#04x}.{nr}")))
    };
    let all = of(DISK_PORTS_SLOT, DISK_PORTS, disk_port);
    let all = all.chain(of(NIC_PORTS_SLOT, NIC_PORTS, nic_port));
    all.enumerate().map(|(nr, (id, addr))| {
        json!({"driver": "pcie-root-port", "id": id, "bus": "pcie.0", "addr": addr,
            "multifunction": true, "chassis": nr + 1})
    })
}

/// Returns the location of each PCI disk at the start of the machine, by its position in the VM
/// file; `None` for SATA.
pub fn disk_places(vm: &Vm) -> Vec<Option<PciLocation>> {
    let mut ports = (0..).map(disk_port);
    let place = |(nr, disk): (usize, &Disk)| match (nr, on_pci(disk)) {
        (_, false) => None,
        (0, true) => Some(PciLocation::Slot(DISK_SLOT)),
        (_, true) => ports.next().map(PciLocation::Port),
    };
    vm.disks.iter().enumerate().map(place).collect()
}

/// Returns the location of a NIC at the start of the machine, by its position in the VM file.
pub fn nic_place(position: usize) -> PciLocation {
    match position.checked_sub(1) {
        None => PciLocation::Slot(NIC_SLOT),
        Some(port) => PciLocation::Port(nic_port(port)),
    }
}

/// Returns true if a disk is a PCI device, not a drive of the SATA controller.
fn on_pci(disk: &Disk) -> bool {
    disk.media == Media::Disk && disk.bus != Bus::Sata
}

/// Returns the device ID of a disk.
pub fn disk_id(disk: &Label) -> String {
    format!("disk-{disk}")
}

/// Returns the device ID of a NIC.
pub fn nic_id(nic: &Label) -> String {
    format!("nic-{nic}")
}

/// Returns the ID of a NIC's network back end.
pub fn net_id(nic: &Label) -> String {
    format!("net-{nic}")
}

/// Returns all disks and CDs; CDs are last in the boot order.
pub(crate) fn disks(vm: &Vm, there: &[DiskFile], files: &mut Files) -> Vec<Argument> {
    let (mut out, mut on_sata) = (vec![], 0);
    let disk_count = vm.disks.iter().filter(|d| d.media == Media::Disk).count();
    let (mut disk_boot, mut cd_boot) = (1, 1 + disk_count);
    for ((disk, file), place) in vm.disks.iter().zip(there).zip(disk_places(vm)) {
        let cd = disk.media == Media::Cdrom;
        let DiskParts { objects, nodes } = parts(disk, file, files);
        out.extend(objects.into_iter().map(|value| Argument { option: "-object", value }));
        out.extend(nodes.into_iter().map(blockdev));
        let boot = if cd { &mut cd_boot } else { &mut disk_boot };
        let mut front = front(disk, file.sector_size);
        front["bootindex"] = (*boot).into();
        *boot += 1;
        out.push(device(match place {
            Some(place) => place.put(front),
            None => {
                front["bus"] = format!("ide.{on_sata}").into();
                on_sata += 1;
                front
            }
        }));
    }
    out
}

/// Returns the device of a disk.
fn front(disk: &Disk, sector_size: SectorSize) -> Value {
    let driver = match (disk.media, disk.bus) {
        (Media::Cdrom, _) => "ide-cd",
        (Media::Disk, Bus::Sata) => "ide-hd",
        (Media::Disk, Bus::Nvme) => "nvme",
        (Media::Disk, Bus::Virtio) => "virtio-blk-pci",
    };
    let name = disk.name.as_str();
    let mut front = json!({
        "driver": driver, "id": disk_id(&disk.name), "drive": node(&disk.name), "serial": name
    });
    // QEMU's default made explicit: the guest is paused without disk space on the host, and gets
    // all other errors. QEMU's NVMe device has no such option and reports both to the guest.
    if !disk.read_only && matches!(driver, "virtio-blk-pci" | "ide-hd") {
        front["werror"] = "enospc".into();
        front["rerror"] = "report".into();
    }
    if disk.iothread {
        front["iothread"] = iothread(&disk.name).into();
    }
    if sector_size != SectorSize::B512 {
        front["logical_block_size"] = sector_size.bytes().into();
        front["physical_block_size"] = sector_size.bytes().into();
    }
    front
}

/// Returns the objects, nodes and device of a disk to hotplug. It is not bootable before the next
/// start.
pub fn disk_behind(
    disk: &Disk,
    file: &DiskFile,
    port: &str,
    files: &mut Files,
) -> (DiskParts, Value) {
    let front = front(disk, file.sector_size);
    (parts(disk, file, files), PciLocation::Port(port.to_owned()).put(front))
}

/// Returns the seed: a virtio disk, since cloud kernels lack AHCI; a CD if the root disk is not
/// virtio either.
pub(crate) fn seed(vm: &Vm, path: &Path, files: &mut Files) -> Vec<Argument> {
    let (path, format) = (path.to_owned(), Format::Raw);
    let sector_size = SectorSize::B512;
    let file = DiskFile { path, format, is_device: false, backing: vec![], sector_size };
    let seed = || "seed".to_owned();
    let names = NodeNames { file: "seed-file".to_owned(), format: seed(), owner: seed() };
    let mut out = nodes(names, &file, true, false, files).map(blockdev).to_vec();
    let virtio = vm.disks.first().is_none_or(|d| d.bus == Bus::Virtio);
    out.push(device(if virtio {
        at(json!({"driver": "virtio-blk-pci", "id": "seed", "drive": "seed"}), SEED_SLOT)
    } else {
        let port = format!("ide.{}", Vm::MAX_SATA);
        json!({"driver": "ide-cd", "id": "seed", "drive": "seed", "bus": port})
    }));
    out
}

/// Returns the flash nodes of UEFI code and variables.
pub(crate) fn flash(firmware: &SelectedFirmware, vars: &Path, files: &mut Files) -> Vec<Value> {
    let mut parts = vec![("flash-code", firmware.code.as_path(), firmware.code_format, true)];
    if firmware.vars_template.is_some() {
        parts.push(("flash-vars", vars, firmware.vars_format, false));
    }
    let mut out = vec![];
    for (node, path, format, read_only) in parts {
        let name = Some(format!("{node}-file"));
        let mut file = file_node(("file", name), node, path, Access::cached(!read_only), files);
        if read_only {
            // The file is world-readable: anyone who locks it would prevent the start of every VM.
            file["locking"] = "off".into();
        }
        out.push(file);
        out.push(json!({"driver": format.name(), "node-name": node,
            "file": format!("{node}-file"), "read-only": read_only}));
    }
    out
}

/// How QEMU refers to the descriptors of a tap: by number at the start, by name (`getfd`) for
/// hotplug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapEnds {
    /// The tap.
    pub tap: String,
    /// Its vhost-net device.
    pub vhost: Option<String>,
}

/// Returns the arguments of a NIC at the start of the machine.
pub(crate) fn nic(nic: &Nic, index: usize, mac: Option<MacAddr>, vhost_net: bool) -> Vec<Argument> {
    let vhost = vhost_net.then(|| fd::vhost(index).to_string());
    let ends = TapEnds { tap: fd::tap(index).to_string(), vhost };
    let (back, front) = nic_at(nic, mac, &nic_place(index), &ends);
    vec![Argument { option: "-netdev", value: back }, device(front)]
}

/// Returns the network back end and the device of a NIC.
pub fn nic_at(
    nic: &Nic,
    mac: Option<MacAddr>,
    place: &PciLocation,
    ends: &TapEnds,
) -> (Value, Value) {
    let id = net_id(&nic.name);
    let back = match &nic.link {
        Link::Bridge { .. } => {
            let mut tap = json!({"type": "tap", "id": id, "fd": ends.tap});
            if let Some(vhost) = &ends.vhost {
                tap["vhost"] = true.into();
                tap["vhostfd"] = vhost.as_str().into();
            }
            tap
        }
        Link::User { forward } => {
            let mut user = json!({"type": "user", "id": id});
            if !forward.is_empty() {
                let rule = |f: &crate::value::Forward| {
                    let (ip, port) = (f.host.ip(), f.host.port());
                    json!({"str": format!("{}:{ip}:{port}-:{}", f.protocol, f.guest)})
                };
                user["hostfwd"] = forward.iter().map(rule).collect();
            }
            user
        }
    };
    let driver = match nic.model {
        Model::Virtio => "virtio-net-pci",
        Model::E1000e => "e1000e",
    };
    let mut front = json!({"driver": driver, "id": nic_id(&nic.name), "netdev": id, "romfile": ""});
    if let Some(mac) = mac {
        front["mac"] = mac.to_string().into();
    }
    if let (Some(mtu), Model::Virtio) = (nic.mtu, nic.model) {
        front["host_mtu"] = mtu.into();
    }
    (back, place.put(front))
}
