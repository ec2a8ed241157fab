//! Where the VM file and what runs differ, key by key, and when each change becomes real.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::{Checksum, Link, OnGuestReboot, Origin, Source, Vm};

/// One difference between the VM file and what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The key, such as `mem` or `disk.data.size`.
    pub key: String,
    /// What runs; null where there is nothing.
    pub from: Option<String>,
    /// What is written; null where it was taken out.
    pub to: Option<String>,
    /// When the change becomes real.
    pub takes_effect: TakesEffect,
}

/// When a change becomes real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakesEffect {
    /// At `qvm apply` or SIGHUP.
    Live,
    /// When the guest reboots (with `onGuestReboot = "apply"`), or at the next start.
    NextReboot,
    /// At the next start of a stopped VM.
    NextStart,
    /// When cloud-init runs again, which a changed seed alone does not bring about.
    CloudInitRerun,
    /// Never: the disk exists.
    Ignored,
}

impl TakesEffect {
    /// A sentence's end for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Live => "at `qvm apply`",
            Self::NextReboot => "when the guest reboots",
            Self::NextStart => "at the next start",
            Self::CloudInitRerun => "when cloud-init runs again",
            Self::Ignored => "never: the disk exists",
        }
    }
}

/// The differences, in the order of their keys.
pub fn pending(running: &Vm, written: &Vm) -> Vec<Pending> {
    let (from, to) = (facets(running), facets(written));
    let keys: std::collections::BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let mut out = vec![];
    // What runs counts: `onGuestReboot` itself is taken up by a reload.
    let resets = running.on_guest_reboot == OnGuestReboot::Reset;
    for key in keys {
        let (old, new) = (from.get(key), to.get(key));
        let text = |facet: Option<&Facet>| facet.map(|f| f.shown.clone());
        if let (true, Some(facet)) = (text(old) != text(new), new.or(old)) {
            out.push(Pending {
                key: key.clone(),
                from: text(old),
                to: text(new),
                takes_effect: match facet.effect {
                    TakesEffect::NextReboot if resets => TakesEffect::NextStart,
                    effect => effect,
                },
            });
        }
    }
    out
}

/// Whether a new QEMU would take any of these up.
pub fn wants_relaunch(pending: &[Pending]) -> bool {
    pending.iter().any(|p| p.takes_effect == TakesEffect::NextReboot)
}

struct Facet {
    shown: String,
    effect: TakesEffect,
}

/// Every key of a VM file with its value as text and the time at which a change of it is real.
fn facets(vm: &Vm) -> BTreeMap<String, Facet> {
    let mut out = BTreeMap::new();
    let mut say = |key: String, value: Option<String>, effect| {
        if let Some(shown) = value {
            out.insert(key, Facet { shown, effect });
        }
    };
    use TakesEffect::{CloudInitRerun, Ignored, Live, NextReboot, NextStart};
    say("description".into(), vm.description.clone(), Live);
    say("autostart".into(), Some(vm.autostart.to_string()), Live);
    let after: Vec<&str> = vm.after.iter().map(|n| n.as_str()).collect();
    say("after".into(), Some(after.join(", ")), Live);
    say("cpuWeight".into(), Some(vm.cpu_weight.to_string()), Live);
    say("cpuQuota".into(), vm.cpu_quota.map(|percent| percent.to_string()), Live);
    say("memoryMax".into(), vm.memory_max.map(|size| size.to_string()), Live);
    say("ioWeight".into(), vm.io_weight.map(|weight| weight.to_string()), Live);
    say("oomScoreAdjust".into(), vm.oom_score_adjust.map(|adjust| adjust.to_string()), Live);
    let pin: Vec<String> = vm.cpu_pin.iter().map(|list| format!("`{list}`")).collect();
    say("cpu.pin".into(), (!pin.is_empty()).then(|| pin.join(", ")), Live);
    say("hostShutdown".into(), Some(word(&vm.host_shutdown)), Live);
    // A start that is over is not judged anew.
    say("ready".into(), Some(vm.ready.to_string()), NextStart);
    say("readyTimeoutSec".into(), Some(vm.ready_timeout.get().to_string()), NextStart);
    say("readyFailure".into(), Some(word(&vm.ready_failure)), Live);
    say("shutdownTimeoutSec".into(), Some(vm.shutdown_timeout.get().to_string()), Live);
    say("onPanic".into(), Some(word(&vm.on_panic)), Live);
    say("onGuestReboot".into(), Some(word(&vm.on_guest_reboot)), Live);
    say("vcpu".into(), Some(vm.vcpu.to_string()), NextReboot);
    say("mem".into(), Some(vm.mem.to_string()), NextReboot);
    say("accel".into(), Some(word(&vm.accel)), NextReboot);
    say("firmware".into(), Some(word(&vm.firmware)), NextReboot);
    for (index, disk) in vm.disks.iter().enumerate() {
        let key = |name: &str| match (disk.name.as_str(), name) {
            ("root", "size") => "diskSizeG".to_owned(),
            ("root", "image") => "image".to_owned(),
            (disk, name) => format!("disk.{disk}.{name}"),
        };
        say(key("size"), disk.size.map(|s| s.to_string()), NextReboot);
        say(key("bus"), Some(word(&disk.bus)), NextReboot);
        say(key("media"), Some(word(&disk.media)), NextReboot);
        say(key("readOnly"), Some(disk.read_only.to_string()), NextReboot);
        say(key("position"), Some(index.to_string()), NextReboot);
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
                say(key("image"), Some(origin + &checksum), Ignored);
                say(key("format"), Some(word(&disk.format)), Ignored);
                say(key("clone"), Some(word(&disk.clone)), Ignored);
            }
            Source::Blank => say(key("format"), Some(word(&disk.format)), Ignored),
            Source::Existing => {}
            Source::File(path) => {
                say(key("path"), Some(path.display().to_string()), NextReboot);
                say(key("format"), Some(word(&disk.format)), NextReboot);
            }
            Source::Device(path) => {
                say(key("device"), Some(path.display().to_string()), NextReboot)
            }
        }
    }
    for (index, nic) in vm.nics.iter().enumerate() {
        let key = |name: &str| match (nic.name.as_str(), name) {
            ("net", "mac" | "ip" | "gateway" | "dns" | "bridge" | "forward") => name.to_owned(),
            (nic, name) => format!("nic.{nic}.{name}"),
        };
        let list = |items: Vec<String>| (!items.is_empty()).then(|| items.join(", "));
        say(key("mac"), nic.mac.map(|m| m.to_string()), NextReboot);
        say(key("mtu"), nic.mtu.map(|m| m.to_string()), NextReboot);
        say(key("model"), Some(word(&nic.model)), NextReboot);
        say(key("position"), Some(index.to_string()), NextReboot);
        match &nic.link {
            Link::Bridge { bridge, tap } => {
                say(key("bridge"), Some(bridge.to_string()), NextReboot);
                say(key("tap"), Some(tap.to_string()), NextReboot);
            }
            Link::User { forward } => {
                say(
                    key("forward"),
                    list(forward.iter().map(|f| f.to_string()).collect()),
                    NextReboot,
                );
            }
        }
        say(key("ip"), nic.ip.map(|i| i.to_string()), CloudInitRerun);
        say(key("gateway"), nic.gateway.map(|g| g.to_string()), CloudInitRerun);
        say(key("dns"), list(nic.dns.iter().map(|d| d.to_string()).collect()), CloudInitRerun);
    }
    say("cloudInit".into(), vm.cloud_init.as_ref().map(|_| "a seed".into()), NextReboot);
    if let Some(seed) = &vm.cloud_init {
        let mut say = |key: &str, value| say(format!("cloudInit.{key}"), value, CloudInitRerun);
        say("hostname", seed.hostname.clone());
        say("user", seed.user.clone());
        let keys = &seed.ssh_authorized_keys;
        say("sshAuthorizedKeys", (!keys.is_empty()).then(|| keys.join(", ")));
        // What is kept secret in the file is not printed: only that it changed shows.
        say("passwordHash", seed.password_hash.as_deref().map(fingerprint));
        say("userData", seed.user_data.as_ref().map(|u| fingerprint(&u.text)));
    }
    out
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
fn fingerprint(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("({} bytes, {hash:016x})", text.len())
}
