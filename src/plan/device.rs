//! The devices behind the command line: what each disk, seed, flash and NIC is to QEMU.
//!
//! Ids carry a prefix for what they name (`disk-`, `nic-`, `net-`, `node-`), so that no label can meet another.
//! Every PCI device has a slot of its own on `pcie.0`, so that a disk more does not rename the guest's network card.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    argv::{DiskFile, fd, text},
    firmware::Chosen,
};
use crate::{
    spec::{Bus, Disk, Format, Link, Media, Model, Nic, Vm},
    value::MacAddr,
};

pub(super) const RNG_SLOT: usize = 0x02;
pub(super) const BALLOON_SLOT: usize = 0x03;
pub(super) const PORTS_SLOT: usize = 0x04;
const FIRST_DISK_SLOT: usize = 0x08;
const FIRST_NIC_SLOT: usize = 0x10;
/// Behind the disks, so that the guest's first virtio disk, `vda`, is `root`.
const SEED_SLOT: usize = FIRST_NIC_SLOT + Vm::MAX_NICS;

const _: () = assert!(FIRST_DISK_SLOT + Vm::MAX_PCI_DISKS <= FIRST_NIC_SLOT);

/// A path that QEMU's JSON cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path `{}` is not UTF-8, and QEMU's JSON options take nothing else", .0.display())]
pub struct BadPath(pub PathBuf);

/// One option with its JSON.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Argument {
    pub(super) option: &'static str,
    pub(super) value: Value,
}

fn blockdev(value: Value) -> Argument {
    Argument { option: "-blockdev", value }
}

fn device(value: Value) -> Argument {
    Argument { option: "-device", value }
}

/// `value` with a slot on the root bus.
pub(super) fn at(mut value: Value, slot: usize) -> Value {
    value["bus"] = "pcie.0".into();
    value["addr"] = format!("{slot:#04x}").into();
    value
}

/// A file and the format on top of it, as two block nodes: `NODE-file` and `NODE`.
fn nodes(node: &str, file: &DiskFile, read_only: bool) -> Result<[Argument; 2], BadPath> {
    let protocol = if file.is_device { "host_device" } else { "file" };
    let mut lower = json!({
        "driver": protocol, "node-name": format!("{node}-file"), "filename": text(&file.path)?,
        "read-only": read_only, "discard": "unmap",
    });
    // A block device has no file system's cache to fill twice, and always takes O_DIRECT.
    if file.is_device {
        lower["aio"] = "native".into();
        lower["cache"] = json!({"direct": true});
    } else {
        lower["aio"] = "threads".into();
    }
    let mut upper = json!({
        "driver": file.format.name(), "node-name": node, "file": format!("{node}-file"),
        "read-only": read_only,
    });
    if !read_only {
        upper["discard"] = "unmap".into();
        upper["detect-zeroes"] = "unmap".into();
    }
    Ok([blockdev(lower), blockdev(upper)])
}

/// All disks and CDs. Disks come first in the boot order, CDs after them.
pub(super) fn disks(vm: &Vm, files: &[DiskFile]) -> Result<Vec<Argument>, BadPath> {
    let (mut out, mut on_pci, mut on_sata) = (vec![], 0, 0);
    let disk_count = vm.disks.iter().filter(|d| d.media == Media::Disk).count();
    let (mut disk_boot, mut cd_boot) = (1, 1 + disk_count);
    for (disk, file) in vm.disks.iter().zip(files) {
        let node = format!("node-{}", disk.name);
        let cd = disk.media == Media::Cdrom;
        out.extend(nodes(&node, file, disk.read_only || cd)?);
        let boot = if cd { &mut cd_boot } else { &mut disk_boot };
        out.push(device(front(disk, &node, *boot, &mut on_pci, &mut on_sata)));
        *boot += 1;
    }
    Ok(out)
}

/// What the guest sees of a disk.
fn front(disk: &Disk, node: &str, boot: usize, on_pci: &mut usize, on_sata: &mut usize) -> Value {
    let name = disk.name.as_str();
    let mut value = match (disk.media, disk.bus) {
        (Media::Cdrom, _) => json!({"driver": "ide-cd"}),
        (Media::Disk, Bus::Sata) => json!({"driver": "ide-hd"}),
        (Media::Disk, Bus::Nvme) => json!({"driver": "nvme"}),
        (Media::Disk, Bus::Virtio) => json!({"driver": "virtio-blk-pci"}),
    };
    value["id"] = format!("disk-{name}").into();
    value["drive"] = node.into();
    value["serial"] = name.into();
    value["bootindex"] = boot.into();
    if disk.media == Media::Cdrom || disk.bus == Bus::Sata {
        value["bus"] = format!("ide.{on_sata}").into();
        *on_sata += 1;
        return value;
    }
    let slot = FIRST_DISK_SLOT + *on_pci;
    *on_pci += 1;
    at(value, slot)
}

/// The seed: a virtio disk, since cloud kernels lack AHCI; a CD where the root disk is no virtio disk either.
pub(super) fn seed(vm: &Vm, path: &Path) -> Result<Vec<Argument>, BadPath> {
    let file = DiskFile { path: path.to_owned(), format: Format::Raw, is_device: false };
    let mut out = nodes("seed", &file, true)?.to_vec();
    let virtio = vm.disks.first().is_none_or(|d| d.bus == Bus::Virtio);
    out.push(device(if virtio {
        at(json!({"driver": "virtio-blk-pci", "id": "seed", "drive": "seed"}), SEED_SLOT)
    } else {
        let port = format!("ide.{}", Vm::MAX_SATA);
        json!({"driver": "ide-cd", "id": "seed", "drive": "seed", "bus": port})
    }));
    Ok(out)
}

/// UEFI's code and variables.
pub(super) fn flash(firmware: &Chosen, vars: &Path) -> Result<Vec<Value>, BadPath> {
    let mut parts = vec![("flash-code", firmware.code.as_path(), firmware.code_format, true)];
    if firmware.vars_template.is_some() {
        parts.push(("flash-vars", vars, firmware.vars_format, false));
    }
    let mut out = vec![];
    for (node, path, format, read_only) in parts {
        out.push(json!({"driver": "file", "node-name": format!("{node}-file"),
            "filename": text(path)?, "read-only": read_only}));
        out.push(json!({"driver": format.name(), "node-name": node,
            "file": format!("{node}-file"), "read-only": read_only}));
    }
    Ok(out)
}

/// A NIC and what it is connected to.
pub(super) fn nic(nic: &Nic, index: usize, mac: Option<MacAddr>, vhost_net: bool) -> Vec<Argument> {
    let id = format!("net-{}", nic.name);
    let back = match &nic.link {
        Link::Bridge { .. } => {
            let mut tap = json!({"type": "tap", "id": id, "fd": fd::tap(index).to_string()});
            if vhost_net {
                tap["vhost"] = true.into();
                tap["vhostfd"] = fd::vhost(index).to_string().into();
            }
            tap
        }
        Link::User { forward } => {
            let mut user = json!({"type": "user", "id": id});
            if !forward.is_empty() {
                let rule = |f: &crate::value::Forward| json!({"str": format!("{}:{}:{}-:{}", f.protocol, f.host.ip(), f.host.port(), f.guest)});
                user["hostfwd"] = forward.iter().map(rule).collect();
            }
            user
        }
    };
    let driver = match nic.model {
        Model::Virtio => "virtio-net-pci",
        Model::E1000e => "e1000e",
    };
    let mut front =
        json!({"driver": driver, "id": format!("nic-{}", nic.name), "netdev": id, "romfile": ""});
    if let Some(mac) = mac {
        front["mac"] = mac.to_string().into();
    }
    if let (Some(mtu), Model::Virtio) = (nic.mtu, nic.model) {
        front["host_mtu"] = mtu.into();
    }
    vec![Argument { option: "-netdev", value: back }, device(at(front, FIRST_NIC_SLOT + index))]
}
