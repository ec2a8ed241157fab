//! The top-level keys of a VM file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    choice::{
        Accel, Bus, Firmware, HostShutdown, Isolation, OnGuestReboot, OnPanic, ReadyFailure,
        TapHeal,
    },
    cloud_init::CloudInit,
    disk::{Disk, DiskKeys, FlatDisk},
    display::Display,
    nic::{Link, Nic, NicKeys},
    reading::{At, Key, Reading},
    ready::{self, Ready},
    table::{Named, Table},
    user_data::ReadFile,
    written::{Memory, Whole},
};
use crate::value::{CpuList, CpuWeight, Label, Operator, Seconds, Size, VmName};

/// A complete VM file. The flat keys of the first disk and the first NIC are merged into `disks`
/// and `nics`: `diskSizeG` is the size of the disk `root`, `bridge` is the bridge of the NIC `net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The file name without `.toml`.
    pub name: VmName,
    /// The path of the file.
    pub file: PathBuf,
    /// `description`: free text, shown by `qvm status`.
    pub description: Option<String>,
    /// `autostart`: start the VM at host boot.
    pub autostart: bool,
    /// `after`: the VMs that start before this VM and stop after it.
    pub after: Vec<VmName>,
    /// `vcpu`: the number of virtual CPUs, 1 to 255.
    pub vcpu: u8,
    /// `mem`: the memory of the guest.
    pub mem: Size,
    /// `cpuWeight`.
    pub cpu_weight: CpuWeight,
    /// `cpuQuota`: the CPU limit of QEMU in percent of one CPU, 1 to 51200.
    pub cpu_quota: Option<u32>,
    /// `cpu.pin`: the host CPUs of each vCPU, or one list for all; empty without pinning.
    pub cpu_pin: Vec<CpuList>,
    /// `memoryMax`: the memory limit of QEMU.
    pub memory_max: Option<Size>,
    /// `ioWeight`; same range as a CPU weight.
    pub io_weight: Option<CpuWeight>,
    /// `oomScoreAdjust`: -1000 to 1000.
    pub oom_score_adjust: Option<i16>,
    /// `ready`.
    pub ready: Ready,
    /// `readyTimeoutSec`: the time limit for the guest to become ready.
    pub ready_timeout: Seconds,
    /// `readyFailure`.
    pub ready_failure: ReadyFailure,
    /// `hostShutdown`.
    pub host_shutdown: HostShutdown,
    /// `shutdownTimeoutSec`: the time limit of a clean shutdown before the guest is forced off.
    pub shutdown_timeout: Seconds,
    /// `accel`.
    pub accel: Accel,
    /// `firmware`.
    pub firmware: Firmware,
    /// `operators`: the accounts that may control the VM besides root.
    pub operators: Vec<Operator>,
    /// `isolation`.
    pub isolation: Isolation,
    /// `onPanic`.
    pub on_panic: OnPanic,
    /// `onGuestReboot`.
    pub on_guest_reboot: OnGuestReboot,
    /// `tapHeal`.
    pub tap_heal: TapHeal,
    /// The disks: `root`, then the others in the order of the file. Never empty.
    pub disks: Vec<Disk>,
    /// The NICs: `net`, then the others in the order of the file; empty for an empty `[nic]` table.
    pub nics: Vec<Nic>,
    /// `[cloudInit]`; `None` means no seed.
    pub cloud_init: Option<CloudInit>,
    /// `[display]`; `None` means no graphical screen.
    pub display: Option<Display>,
    /// The line of each written key, by its path (`bridge`, `disk.data.size`), for messages.
    pub lines: BTreeMap<String, usize>,
}

impl Vm {
    /// Returns how to connect to a TCP port of the guest; never `None` for the port of a
    /// [`Ready::Tcp`].
    pub fn reach(&self, port: u16) -> Option<ready::Reach> {
        ready::reach(&self.nics, port)
    }
}

impl Vm {
    /// The default of `shutdownTimeoutSec`.
    pub const SHUTDOWN_TIMEOUT: Seconds = Seconds::new(120);
    /// The default of `readyTimeoutSec`.
    pub const READY_TIMEOUT: Seconds = Seconds::new(300);
    /// The default of `mem`.
    pub const MEM: Size = Size::from_bytes(Size::GIB);
    /// The maximum number of virtio and NVMe disks: each has a fixed PCI slot.
    pub const MAX_PCI_DISKS: usize = 8;
    /// The maximum number of SATA disks and CDs: q35's controller has six ports, and the last is
    /// for the seed.
    pub const MAX_SATA: usize = 5;
    /// The maximum number of NICs.
    pub const MAX_NICS: usize = 8;
    /// The maximum length of a description, in characters.
    pub const DESCRIPTION: usize = 256;

    /// Returns the forwarded ports of all NICs.
    pub fn forwards(&self) -> Vec<String> {
        let of = |nic: &Nic| match &nic.link {
            Link::User { forward } => forward.iter().map(ToString::to_string).collect(),
            Link::Bridge { .. } => vec![],
        };
        self.nics.iter().flat_map(of).collect()
    }

    /// Returns `FILE:LINE` of a key or of its table, or `FILE` if neither was written.
    pub fn at(&self, key: &str) -> String {
        let file = super::problem::one_line(&self.file.to_string_lossy());
        match self.line(key) {
            Some(line) => format!("{file}:{line}"),
            None => file,
        }
    }

    /// Returns the line of a key, or of the nearest enclosing table that was written. A flat key is
    /// also found by the path of its table: `nic.net.bridge` is `bridge`.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path).or_else(|| self.lines.get(flat(path)?)) {
                return Some(*line);
            }
            path = path.rsplit_once('.')?.0;
        }
    }

    /// Returns a key as it was written: `nic.net.bridge` may have been written as `bridge`.
    pub(super) fn written(&self, key: &str) -> String {
        let short = flat(key).filter(|short| self.lines.contains_key(*short));
        short.unwrap_or(key).to_owned()
    }

    /// Parses all keys of a VM file.
    pub(super) fn take(
        r: &mut Reading<'_>,
        name: &VmName,
        file: &Path,
        mut top: Table<'_>,
        user_data: &mut ReadFile<'_>,
    ) -> Self {
        let description = top.take(r, "description");
        let description = self::description(r, description);
        let autostart = top.take(r, "autostart").value.unwrap_or_default();
        let after = top.take_list(r, "after");
        let after = self::after(r, name, after);
        let operators = top.take_list::<Operator>(r, "operators").value.unwrap_or_default();
        let vcpu = top.take::<Whole<1, 255>>(r, "vcpu").value;
        let mem = top.take(r, "mem").value.map_or(Self::MEM, |Memory(size)| size);
        let cpu_weight = top.take(r, "cpuWeight").value.unwrap_or_default();
        let cpu_quota = top.take::<Whole<1, { 100 * 512 }>>(r, "cpuQuota").value;
        let memory_max = top.take(r, "memoryMax").value.map(|Memory(size)| size);
        let io_weight = top.take::<Whole<1, 10_000>>(r, "ioWeight").value;
        let oom_score_adjust = top.take::<Whole<-1000, 1000>>(r, "oomScoreAdjust").value;
        let ready = top.take::<Ready>(r, "ready");
        let ready_timeout = top.take(r, "readyTimeoutSec").value;
        let ready_failure = top.take(r, "readyFailure").value.unwrap_or_default();
        let host_shutdown = top.take(r, "hostShutdown").value.unwrap_or_default();
        let shutdown_timeout = top.take(r, "shutdownTimeoutSec").value;
        let accel = top.take(r, "accel").value.unwrap_or_default();
        let firmware = top.take(r, "firmware").value.unwrap_or_default();
        let isolation = top.take::<Isolation>(r, "isolation");
        let on_panic = top.take(r, "onPanic").value.unwrap_or_default();
        let on_guest_reboot = top.take(r, "onGuestReboot").value.unwrap_or_default();
        let tap_heal = top.take(r, "tapHeal").value.unwrap_or_default();
        let vcpu = vcpu.and_then(|Whole(vcpu)| u8::try_from(vcpu).ok()).unwrap_or(1);
        let cpu = top.take_table(r, "cpu");
        let cpu_pin = cpu.map_or_else(Vec::new, |table| cpu_pin(r, table, vcpu));
        let disks = disks(r, &mut top);
        let nics = nics(r, name, &mut top);
        let cloud_init = top.take_table(r, "cloudInit");
        let cloud_init = cloud_init.map(|table| CloudInit::take(r, table, user_data));
        let display = top.take_table(r, "display").map(|table| Display::take(r, table));
        top.finish(r);
        if let Some((at, ready)) = ready.good() {
            ready.check(r, at, &nics, cloud_init.is_some());
        }
        if let Some((at, Isolation::Strict)) = isolation.good() {
            check_isolation(r, at, &nics);
        }
        Self {
            name: name.clone(),
            file: file.to_owned(),
            description,
            autostart,
            after,
            vcpu,
            mem,
            cpu_weight,
            cpu_quota: cpu_quota.and_then(|Whole(percent)| u32::try_from(percent).ok()),
            cpu_pin,
            memory_max,
            io_weight: io_weight.and_then(|Whole(weight)| weight.try_into().ok()),
            oom_score_adjust: oom_score_adjust.and_then(|Whole(adj)| i16::try_from(adj).ok()),
            ready: ready.value.unwrap_or_default(),
            ready_timeout: ready_timeout.unwrap_or(Self::READY_TIMEOUT),
            ready_failure,
            host_shutdown,
            shutdown_timeout: shutdown_timeout.unwrap_or(Self::SHUTDOWN_TIMEOUT),
            accel,
            firmware,
            operators: operators.into_iter().map(|(_, operator)| operator).collect(),
            isolation: isolation.value.unwrap_or_default(),
            on_panic,
            on_guest_reboot,
            tap_heal,
            disks,
            nics,
            cloud_init,
            display,
            lines: std::mem::take(&mut r.lines),
        }
    }
}

/// Returns the flat key that is equivalent to a key of `[disk.root]` or `[nic.net]`.
fn flat(path: &str) -> Option<&str> {
    path.strip_prefix("nic.net.").or(match path {
        "disk.root.size" => Some("diskSizeG"),
        "disk.root.clone" => Some("image.clone"),
        path => path.strip_prefix("disk.root.").filter(|rest| rest.starts_with("image")),
    })
}

fn description(r: &mut Reading<'_>, key: Key<String>) -> Option<String> {
    if let Some((at, text)) = key.good() {
        if text.chars().any(char::is_control) {
            r.wrong(
                at,
                "the text contains control \
                characters",
                Some("write it in one line".into()),
            );
        }
        let length = text.chars().count();
        if length > Vm::DESCRIPTION {
            let message = format!(
                "the text has {length} characters; at most {} are \
                allowed",
                Vm::DESCRIPTION
            );
            r.wrong(at, message, Some("use a comment for longer text".into()));
        }
    }
    key.value
}

fn after(r: &mut Reading<'_>, own: &VmName, key: Key<Vec<(At, VmName)>>) -> Vec<VmName> {
    let list = key.value.unwrap_or_default();
    for (nr, (at, name)) in list.iter().enumerate() {
        if name == own {
            r.wrong(at, format!("`{name}` is this VM itself"), None);
        } else if list.iter().take(nr).any(|(_, other)| other == name) {
            r.wrong(at, format!("`{name}` appears twice"), None);
        }
    }
    list.into_iter().map(|(_, name)| name).collect()
}

/// `[cpu]`: a list of CPUs for each vCPU, or one list for all.
fn cpu_pin(r: &mut Reading<'_>, mut table: Table<'_>, vcpu: u8) -> Vec<CpuList> {
    let pin = table.take_list::<CpuList>(r, "pin");
    table.finish(r);
    let list = pin.value.unwrap_or_default();
    if let (Some(at), false) = (&pin.at, list.len() <= 1 || list.len() == usize::from(vcpu)) {
        let message = format!("{} lists of CPUs for {vcpu} vCPUs", list.len());
        r.refuse(at, message, Some("write one list for each vCPU, or one list for all".into()));
    }
    list.into_iter().map(|(_, list)| list).collect()
}

/// Returns the disks, `root` first.
fn disks(r: &mut Reading<'_>, top: &mut Table<'_>) -> Vec<Disk> {
    let flat = FlatDisk::take(r, top);
    let (mut root, mut others) = (None, Vec::new());
    let tables = top.take_named(r, "disk", Label::ROOT).map(|named| named.tables);
    for (label, table) in tables.into_iter().flatten() {
        let keys = DiskKeys::take(r, table);
        match label.as_str() {
            Label::ROOT => root = Some(keys),
            _ => others.push((label, keys)),
        }
    }
    let root = DiskKeys::root(r, flat, root);
    let mut disks: Vec<Disk> = Vec::with_capacity(1 + others.len());
    for (label, keys) in std::iter::once((Label::root(), root)).chain(others) {
        let (header, at) = (keys.header().cloned(), keys.own().cloned());
        let disk = keys.build(r, label);
        if let Some(header) = header {
            fits(r, &header, &disk, &disks);
        }
        let twin = disks.iter().find(|other| disk.shares_with(other));
        if let (Some(twin), Some(at)) = (twin, at) {
            r.refuse(&at, format!("this file or device is already the disk `{}`", twin.name), None);
        }
        disks.push(disk);
    }
    disks
}

/// Reports a disk for which the machine has no slot or port.
fn fits(r: &mut Reading<'_>, at: &At, disk: &Disk, before: &[Disk]) {
    let sata = |disk: &Disk| disk.bus == Bus::Sata;
    let taken = before.iter().filter(|other| sata(other) == sata(disk)).count();
    let (most, what) = match sata(disk) {
        true => (Vm::MAX_SATA, "disks and CDs on SATA"),
        false => (Vm::MAX_PCI_DISKS, "disks on virtio and NVMe"),
    };
    if taken == most {
        r.refuse(at, format!("a VM can have at most {most} {what}"), None);
    }
}

/// Returns the NICs, `net` first.
fn nics(r: &mut Reading<'_>, vm: &VmName, top: &mut Table<'_>) -> Vec<Nic> {
    let flat = NicKeys::take_flat(r, top);
    let named = top.take_named(r, "nic", Label::NET);
    if let (Some(Named { at, empty: true, .. }), Some(key)) = (&named, flat.first()) {
        let line = r.line(key.span.start);
        let message = format!(
            "an empty `[nic]` means no network, but `{}` is set in line \
            {line}",
            key.key
        );
        r.refuse(at, message, Some("remove one of the two".into()));
    }
    let implicit = named.is_none() || flat.first().is_some();
    let (mut net, mut others) = (None, Vec::new());
    for (label, table) in named.into_iter().flat_map(|named| named.tables) {
        let keys = NicKeys::take(r, table);
        match label.as_str() {
            Label::NET => net = Some(keys),
            _ => others.push((label, keys)),
        }
    }
    let net = match net {
        None if !implicit => None,
        net => Some((Label::net(), NicKeys::net(r, flat, net))),
    };
    let mut nics: Vec<(NicKeys, Nic)> = Vec::new();
    for (label, keys) in net.into_iter().chain(others) {
        let nic = keys.build(r, vm, label);
        if let (Vm::MAX_NICS, Some(at)) = (nics.len(), keys.header()) {
            r.refuse(at, format!("a VM can have at most {} NICs", Vm::MAX_NICS), None);
        }
        for (other_keys, other) in &nics {
            keys.check_against(r, &nic, other_keys, other);
        }
        nics.push((keys, nic));
    }
    nics.into_iter().map(|(_, nic)| nic).collect()
}

/// Reports a NIC that requires access to the host's network if the isolation forbids it.
fn check_isolation(r: &mut Reading<'_>, at: &At, nics: &[Nic]) {
    let user = nics.iter().find(|nic| matches!(nic.link, Link::User { .. }));
    if let Some(nic) = user {
        let message = format!(
            "the user-mode network of `{}` requires that QEMU has access to the host's network",
            nic.name
        );
        let hint = "set a `bridge`, or write `isolation = \"on\"`";
        r.refuse(at, message, Some(hint.into()));
    }
}
