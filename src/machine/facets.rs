//! A VM, key by key, as text: what can be compared, kept, and shown.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    spec::{AntiSpoof, Checksum, Disk, Link, Nic, Origin, Source, Vm},
    value::Label,
};

/// Every key of a VM with its value; no entry where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facets(BTreeMap<String, String>);

/// The order of the disks, as a key.
pub const DISKS: &str = "disk";
/// The order of the NICs.
pub const NICS: &str = "nic";
/// The keys of where and how the screen is served.
pub const SCREEN: [&str; 2] = ["display.vnc", "display.passwordFile"];
/// The key of the memory.
pub const MEM: &str = "mem";

/// A disk or a NIC, by its key: `disk.data`, `nic.lan`.
pub fn part(kind: &str, name: &Label) -> String {
    format!("{kind}.{name}")
}

/// The key that a disk's property has.
pub fn disk_key(disk: &str, property: &str) -> String {
    match (disk, property) {
        (Label::ROOT, "size") => "diskSizeG".to_owned(),
        (Label::ROOT, "image") => "image".to_owned(),
        (disk, property) => format!("{DISKS}.{disk}.{property}"),
    }
}

/// The key that a NIC's property has.
pub fn nic_key(nic: &str, property: &str) -> String {
    match (nic, property) {
        (Label::NET, "mac" | "ip" | "gateway" | "dns" | "bridge" | "forward" | "antiSpoof") => {
            property.to_owned()
        }
        (nic, property) => format!("{NICS}.{nic}.{property}"),
    }
}

impl Facets {
    /// All of a VM file.
    pub fn of(vm: &Vm) -> Self {
        let mut all = Self::default();
        all.machine(vm);
        all.set(DISKS, joined(vm.disks.iter().map(|disk| &disk.name)));
        for disk in &vm.disks {
            all.disk(disk);
        }
        all.set(NICS, joined(vm.nics.iter().map(|nic| &nic.name)));
        for nic in &vm.nics {
            all.nic(nic);
        }
        all.seed(vm);
        all.display(vm);
        all
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets a key, or takes it out.
    pub fn set(&mut self, key: impl Into<String>, value: Option<String>) {
        let key = key.into();
        match value {
            Some(value) => drop(self.0.insert(key, value)),
            None => drop(self.0.remove(&key)),
        }
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The names of the disks or NICs, in their order.
    pub fn names(&self, kind: &str) -> Vec<&str> {
        self.get(kind).into_iter().flat_map(|names| names.split(", ")).collect()
    }

    /// The keys of one disk or NIC, in these facets or in `other`.
    pub fn keys_of(&self, other: &Self, kind: &str, name: &str) -> Vec<String> {
        let key = if kind == DISKS { disk_key } else { nic_key };
        let own = format!("{kind}.{name}");
        let below = format!("{own}.");
        let flat: Vec<String> =
            ["size", "image", "mac", "ip", "gateway", "dns", "bridge", "forward", "antiSpoof"]
                .into_iter()
                .map(|property| key(name, property))
                .collect();
        let all: BTreeSet<&String> = self.keys().chain(other.keys()).collect();
        let its = |key: &&&String| ***key == own || key.starts_with(&below) || flat.contains(**key);
        all.iter().filter(its).map(|key| (*key).clone()).collect()
    }

    fn machine(&mut self, vm: &Vm) {
        let mut say = |key: &str, value: Option<String>| self.set(key, value);
        say("description", vm.description.clone());
        say("autostart", Some(vm.autostart.to_string()));
        say("after", joined(vm.after.iter()));
        say("cpuWeight", Some(vm.cpu_weight.to_string()));
        say("cpuQuota", vm.cpu_quota.map(|percent| percent.to_string()));
        say("memoryMax", vm.memory_max.map(|size| size.to_string()));
        say("ioWeight", vm.io_weight.map(|weight| weight.to_string()));
        say("oomScoreAdjust", vm.oom_score_adjust.map(|adjust| adjust.to_string()));
        say("cpu.pin", joined(vm.cpu_pin.iter().map(|list| format!("`{list}`"))));
        say("hostShutdown", Some(word(&vm.host_shutdown)));
        say("ready", Some(vm.ready.to_string()));
        say("readyTimeoutSec", Some(vm.ready_timeout.get().to_string()));
        say("readyFailure", Some(word(&vm.ready_failure)));
        say("shutdownTimeoutSec", Some(vm.shutdown_timeout.get().to_string()));
        say("operators", joined(&vm.operators));
        say("isolation", Some(word(&vm.isolation)));
        say("onPanic", Some(word(&vm.on_panic)));
        say("onGuestReboot", Some(word(&vm.on_guest_reboot)));
        say("tapHeal", Some(word(&vm.tap_heal)));
        say("vcpu", Some(vm.vcpu.to_string()));
        say(MEM, Some(vm.mem.to_string()));
        say("accel", Some(word(&vm.accel)));
        say("firmware", Some(word(&vm.firmware)));
    }

    fn disk(&mut self, disk: &Disk) {
        let name = disk.name.as_str();
        let mut say = |property: &str, value| self.set(disk_key(name, property), value);
        let size = disk.size.map(|size| size.to_string());
        let mut shown: Vec<String> = size.clone().into_iter().collect();
        say("size", size);
        say("bus", Some(word(&disk.bus)));
        say("media", Some(word(&disk.media)));
        say("readOnly", Some(disk.read_only.to_string()));
        match &disk.source {
            Source::Image(image) => {
                let origin = match &image.origin {
                    Origin::Http(url) => url.clone(),
                    Origin::Path(path) => path.display().to_string(),
                };
                let checksum = match &image.checksum {
                    Checksum::Digest(digest) => format!(" {digest}"),
                    Checksum::Sums(sums) => format!(" {sums}"),
                    Checksum::None => String::new(),
                };
                shown.push(origin.clone());
                say("image", Some(origin + &checksum));
                say("format", Some(word(&disk.format)));
                say("clone", Some(word(&disk.clone)));
            }
            Source::Blank => say("format", Some(word(&disk.format))),
            Source::Existing => {}
            Source::File(path) => {
                shown.push(path.display().to_string());
                say("path", Some(path.display().to_string()));
                say("format", Some(word(&disk.format)));
            }
            Source::Device(path) => {
                shown.push(path.display().to_string());
                say("device", Some(path.display().to_string()));
            }
        }
        shown.push(word(&disk.bus));
        self.set(part(DISKS, &disk.name), Some(shown.join(", ")));
    }

    fn nic(&mut self, nic: &Nic) {
        let name = nic.name.as_str();
        let mut say = |property: &str, value| self.set(nic_key(name, property), value);
        say("mac", nic.mac.map(|mac| mac.to_string()));
        say("mtu", nic.mtu.map(|mtu| mtu.to_string()));
        say("model", Some(word(&nic.model)));
        say("link", Some(word(&nic.state)));
        let shown = match &nic.link {
            Link::Bridge { bridge, tap } => {
                say("bridge", Some(bridge.to_string()));
                say("tap", Some(tap.to_string()));
                say("isolated", nic.isolated.then(|| true.to_string()));
                say(
                    "antiSpoof",
                    match nic.anti_spoof {
                        AntiSpoof::Off => Some(false.to_string()),
                        AntiSpoof::WherePossible => None,
                        AntiSpoof::Required => Some(true.to_string()),
                    },
                );
                format!("on {bridge}, {}", word(&nic.model))
            }
            Link::User { forward } => {
                say("forward", joined(forward));
                format!("user-mode network, {}", word(&nic.model))
            }
        };
        say("ip", nic.ip.map(|ip| ip.to_string()));
        say("gateway", nic.gateway.map(|gateway| gateway.to_string()));
        say("dns", joined(&nic.dns));
        self.set(part(NICS, &nic.name), Some(shown));
    }

    fn seed(&mut self, vm: &Vm) {
        let Some(seed) = &vm.cloud_init else { return };
        self.set("cloudInit", Some("a seed".to_owned()));
        let mut say = |key: &str, value| self.set(format!("cloudInit.{key}"), value);
        say("hostname", seed.hostname.clone());
        say("user", seed.user.clone());
        say("sshAuthorizedKeys", joined(&seed.ssh_authorized_keys));
        // What is kept secret in the file is not printed: only that it changed shows.
        say("passwordHash", seed.password_hash.as_deref().map(|hash| fingerprint(hash.as_bytes())));
        say("userData", seed.user_data.as_ref().map(|u| fingerprint(&u.bytes)));
    }
}

impl Facets {
    fn display(&mut self, vm: &Vm) {
        let Some(display) = &vm.display else { return };
        self.set("display", Some("a screen".to_owned()));
        self.set("display.vnc", display.vnc.map(|at| at.to_string()));
        let file = display.password_file.as_ref();
        self.set("display.passwordFile", file.map(|path| path.display().to_string()));
    }
}

fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> Option<String> {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    (!items.is_empty()).then(|| items.join(", "))
}

/// The word that an enum has in the VM file.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// A short mark that differs where the text differs (FNV-1a, 64 bits).
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("({} bytes, {hash:016x})", bytes.len())
}
