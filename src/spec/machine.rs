//! The keys at the top of a VM file.

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

/// A whole VM file. The flat keys of the first disk and the first NIC are folded into `disks` and
/// `nics` here: `diskSizeG` is the size of the disk `root`, `bridge` is the bridge of the NIC `net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The file's name without `.toml`.
    pub name: VmName,
    /// The file itself.
    pub file: PathBuf,
    /// `description`: free text, shown by `qvm status`.
    pub description: Option<String>,
    /// `autostart`: started with the host.
    pub autostart: bool,
    /// `after`: the VMs to start after, and to stop before.
    pub after: Vec<VmName>,
    /// `vcpu`: how many, 1 to 255.
    pub vcpu: u8,
    /// `mem`: what the guest is given.
    pub mem: Size,
    /// `cpuWeight`.
    pub cpu_weight: CpuWeight,
    /// `cpuQuota`: percent of one CPU that QEMU may use at most, 1 to 51200.
    pub cpu_quota: Option<u32>,
    /// `cpu.pin`: the host's CPUs of each vCPU, or one list for all; empty where the host's scheduler chooses.
    pub cpu_pin: Vec<CpuList>,
    /// `memoryMax`: how much memory of the host's QEMU may use at most.
    pub memory_max: Option<Size>,
    /// `ioWeight`; in the range of a CPU weight.
    pub io_weight: Option<CpuWeight>,
    /// `oomScoreAdjust`: -1000 to 1000.
    pub oom_score_adjust: Option<i16>,
    /// `ready`.
    pub ready: Ready,
    /// `readyTimeoutSec`: how long the guest may take until it is ready.
    pub ready_timeout: Seconds,
    /// `readyFailure`.
    pub ready_failure: ReadyFailure,
    /// `hostShutdown`.
    pub host_shutdown: HostShutdown,
    /// `shutdownTimeoutSec`: how long a clean shutdown may take before the guest is forced off.
    pub shutdown_timeout: Seconds,
    /// `accel`.
    pub accel: Accel,
    /// `firmware`.
    pub firmware: Firmware,
    /// `operators`: who may change the VM beside root.
    pub operators: Vec<Operator>,
    /// `isolation`.
    pub isolation: Isolation,
    /// `onPanic`.
    pub on_panic: OnPanic,
    /// `onGuestReboot`.
    pub on_guest_reboot: OnGuestReboot,
    /// `tapHeal`.
    pub tap_heal: TapHeal,
    /// The disks, `root` first, the others in the order of the file. Never empty.
    pub disks: Vec<Disk>,
    /// The NICs, `net` first, the others in the order of the file; empty with an empty `[nic]` table.
    pub nics: Vec<Nic>,
    /// `[cloudInit]`; without it the VM gets no seed.
    pub cloud_init: Option<CloudInit>,
    /// `[display]`; without it the guest has no screen.
    pub display: Option<Display>,
    /// The line of each key that was written, by its path (`bridge`, `disk.data.size`), for messages.
    pub lines: BTreeMap<String, usize>,
}

impl Vm {
    /// The way to a TCP port of the guest; never `None` for the port of a [`Ready::Tcp`].
    pub fn reach(&self, port: u16) -> Option<ready::Reach> {
        ready::reach(&self.nics, port)
    }
}

impl Vm {
    /// How long a clean shutdown may take, unless written.
    pub const SHUTDOWN_TIMEOUT: Seconds = Seconds::new(120);
    /// How long a guest may take until it is ready, unless written.
    pub const READY_TIMEOUT: Seconds = Seconds::new(300);
    /// What the guest is given, unless written.
    pub const MEM: Size = Size::from_bytes(Size::GIB);
    /// How many disks there can be on virtio and NVMe: each has a fixed slot of the guest's PCI bus.
    pub const MAX_PCI_DISKS: usize = 8;
    /// How many disks and CDs there can be on SATA: q35's controller has six ports, and the last is the seed's.
    pub const MAX_SATA: usize = 5;
    /// How many NICs there can be.
    pub const MAX_NICS: usize = 8;
    /// The longest description, in characters.
    pub const DESCRIPTION: usize = 256;

    /// The host's ports that lead into the guest, over all NICs.
    pub fn forwards(&self) -> Vec<String> {
        let of = |nic: &Nic| match &nic.link {
            Link::User { forward } => forward.iter().map(ToString::to_string).collect(),
            Link::Bridge { .. } => vec![],
        };
        self.nics.iter().flat_map(of).collect()
    }

    /// `FILE:LINE` of a key, or of the table it would be in, or `FILE` where neither was written.
    pub fn at(&self, key: &str) -> String {
        let file = super::problem::one_line(&self.file.to_string_lossy());
        match self.line(key) {
            Some(line) => format!("{file}:{line}"),
            None => file,
        }
    }

    /// The line of a key, or of the nearest table around it that was written. A flat key is found by
    /// the path of its table too: `nic.net.bridge` is `bridge`.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path).or_else(|| self.lines.get(flat(path)?)) {
                return Some(*line);
            }
            path = path.rsplit_once('.')?.0;
        }
    }

    /// A key by the path that it was written with: `nic.net.bridge` may have been written as `bridge`.
    pub(super) fn written(&self, key: &str) -> String {
        let short = flat(key).filter(|short| self.lines.contains_key(*short));
        short.unwrap_or(key).to_owned()
    }

    /// Takes every key of a VM file.
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
            shut_off(r, at, &nics);
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

/// The flat key that means the same as a key of `[disk.root]` or `[nic.net]`, if it were one.
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
            r.wrong(at, "it has control characters in it", Some("write it in one line".into()));
        }
        let length = text.chars().count();
        if length > Vm::DESCRIPTION {
            let message = format!("it has {length} characters, and at most {}", Vm::DESCRIPTION);
            r.wrong(at, message, Some("a comment can be as long as it likes".into()));
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
            r.wrong(at, format!("`{name}` is named twice"), None);
        }
    }
    list.into_iter().map(|(_, name)| name).collect()
}

/// `[cpu]`: a list of CPUs for each vCPU, or one for all.
fn cpu_pin(r: &mut Reading<'_>, mut table: Table<'_>, vcpu: u8) -> Vec<CpuList> {
    let pin = table.take_list::<CpuList>(r, "pin");
    table.finish(r);
    let list = pin.value.unwrap_or_default();
    if let (Some(at), false) = (&pin.at, list.len() <= 1 || list.len() == usize::from(vcpu)) {
        let message = format!("{} lists of CPUs for {vcpu} vCPUs", list.len());
        r.refuse(at, message, Some("write one for each vCPU, or one for all".into()));
    }
    list.into_iter().map(|(_, list)| list).collect()
}

/// The disks, `root` first.
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
            r.refuse(&at, format!("it is the disk `{}` already", twin.name), None);
        }
        disks.push(disk);
    }
    disks
}

/// Refuses a disk for which the guest's machine has no place.
fn fits(r: &mut Reading<'_>, at: &At, disk: &Disk, before: &[Disk]) {
    let sata = |disk: &Disk| disk.bus == Bus::Sata;
    let taken = before.iter().filter(|other| sata(other) == sata(disk)).count();
    let (most, what) = match sata(disk) {
        true => (Vm::MAX_SATA, "disks and CDs on SATA"),
        false => (Vm::MAX_PCI_DISKS, "disks on virtio and NVMe"),
    };
    if taken == most {
        r.refuse(at, format!("one too many: a VM can have {most} {what}"), None);
    }
}

/// The NICs, `net` first.
fn nics(r: &mut Reading<'_>, vm: &VmName, top: &mut Table<'_>) -> Vec<Nic> {
    let flat = NicKeys::take_flat(r, top);
    let named = top.take_named(r, "nic", Label::NET);
    if let (Some(Named { at, empty: true, .. }), Some(key)) = (&named, flat.first()) {
        let line = r.line(key.span.start);
        let message = format!("empty, it means no network, but `{}` is in line {line}", key.key);
        r.refuse(at, message, Some("leave one of the two out".into()));
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
            r.refuse(at, format!("one too many: a VM can have {} NICs", Vm::MAX_NICS), None);
        }
        for (other_keys, other) in &nics {
            keys.check_beside(r, &nic, other_keys, other);
        }
        nics.push((keys, nic));
    }
    nics.into_iter().map(|(_, nic)| nic).collect()
}

/// Refuses a NIC that needs a QEMU which has the host's network, where it must not have it.
fn shut_off(r: &mut Reading<'_>, at: &At, nics: &[Nic]) {
    let user = nics.iter().find(|nic| matches!(nic.link, Link::User { .. }));
    if let Some(nic) = user {
        let message = format!(
            "the network of `{}` is QEMU's own (user mode), which then has the host's",
            nic.name
        );
        let hint = "give it a `bridge`, or write `isolation = \"on\"`";
        r.refuse(at, message, Some(hint.into()));
    }
}
