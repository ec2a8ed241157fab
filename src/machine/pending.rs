//! Where the VM file and what runs differ, key by key, and when each change becomes real.

use std::collections::BTreeSet;

use super::facets::{DISKS, Facets, MEM, NICS, SCREEN, disk_key, nic_key};
pub use crate::control::change::{Pending, TakesEffect};
use crate::{
    spec::Vm,
    value::{Label, Size},
};

/// The keys that only qvm itself looks at, or that are given to QEMU's process: a changed one counts as soon as it is read.
pub const AT_ONCE: [&str; 16] = [
    "description",
    "autostart",
    "after",
    "cpuWeight",
    "cpuQuota",
    "memoryMax",
    "ioWeight",
    "oomScoreAdjust",
    "cpu.pin",
    "hostShutdown",
    "readyFailure",
    "shutdownTimeoutSec",
    "operators",
    "onPanic",
    "onGuestReboot",
    "tapHeal",
];

/// What an effect depends on beside the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// What QEMU was started with: the balloon gives up to that.
    pub most_memory: Size,
    /// QEMU listens for viewers of the screen by itself, as an earlier qvm had it.
    pub listens: bool,
    /// A reboot of the guest brings nothing: `onGuestReboot = "reset"`, as it runs.
    pub resets: bool,
}

/// The differences, in the order of their keys.
pub fn pending(running: &Facets, written: &Facets, machine: &Machine) -> Vec<Pending> {
    let mut keys: BTreeSet<String> = running.keys().chain(written.keys()).cloned().collect();
    for kind in [DISKS, NICS] {
        // Of what is on one side only, that it is says all. What its keys would say is in the one line.
        let names = |side: &Facets| -> BTreeSet<String> {
            side.names(kind).into_iter().map(str::to_owned).collect()
        };
        for name in names(running).symmetric_difference(&names(written)) {
            for key in running.keys_of(written, kind, name) {
                keys.remove(&key);
            }
            keys.insert(format!("{kind}.{name}"));
        }
        // Of what is on both sides, that it is there says nothing.
        for name in names(running).intersection(&names(written)) {
            keys.remove(&format!("{kind}.{name}"));
        }
    }
    let difference = |key: String| {
        let (from, to) = match key.as_str() {
            DISKS | NICS => both(running, written, &key),
            key => (owned(running.get(key)), owned(written.get(key))),
        };
        if from == to {
            return None;
        }
        let effect = effect(&key, from.as_deref(), to.as_deref(), running, written, machine);
        let takes_effect = match effect {
            TakesEffect::NextReboot if machine.resets => TakesEffect::NextStart,
            effect => effect,
        };
        let reruns = (takes_effect == TakesEffect::CloudInitRerun).then(|| reruns(&key).to_owned());
        Some(Pending { key, from, to, takes_effect, reruns })
    };
    keys.into_iter().filter_map(difference).collect()
}

/// Whether a new QEMU would take any of these up.
pub fn wants_relaunch(pending: &[Pending]) -> bool {
    pending.iter().any(|p| p.takes_effect == TakesEffect::NextReboot)
}

fn owned(value: Option<&str>) -> Option<String> {
    value.map(str::to_owned)
}

/// The order of those that are on both sides; a disk more at the end changes none of the others.
fn both(running: &Facets, written: &Facets, kind: &str) -> (Option<String>, Option<String>) {
    let (from, to) = (running.names(kind), written.names(kind));
    let of = |side: &[&str], other: &[&str]| -> Option<String> {
        let common: Vec<&str> = side.iter().filter(|name| other.contains(name)).copied().collect();
        (!common.is_empty()).then(|| common.join(", "))
    };
    (of(&from, &to), of(&to, &from))
}

fn effect(
    key: &str,
    from: Option<&str>,
    to: Option<&str>,
    running: &Facets,
    written: &Facets,
    machine: &Machine,
) -> TakesEffect {
    use TakesEffect::{CloudInitRerun, Destructive, Ignored, Live, NextReboot, NextStart};
    let size = |text: Option<&str>| text.and_then(|text| text.parse::<Size>().ok());
    let last = key.rsplit('.').next().unwrap_or(key);
    match (key, last) {
        (key, _) if AT_ONCE.contains(&key) => Live,
        // A start that is over is not judged anew.
        ("ready" | "readyTimeoutSec", _) => NextStart,
        (MEM, _) if size(to).is_some_and(|to| to <= machine.most_memory) => Live,
        ("diskSizeG", _) | (_, "size") => match (size(from), size(to)) {
            (Some(from), Some(to)) if to < from => Destructive,
            (_, Some(_)) => Live,
            (_, None) => Ignored,
        },
        ("image", _) | (_, "image" | "clone") => Ignored,
        (key, "format") if running.get(&key.replace(".format", ".path")).is_none() => Ignored,
        (_, "ip" | "gateway" | "dns") => CloudInitRerun,
        (key, _) if key.starts_with("cloudInit.") => CloudInitRerun,
        (_, "link") => Live,
        // Of a tap that is there and stays.
        (key, "antiSpoof" | "isolated") => {
            let bridge = nic_key(key.split('.').nth(1).unwrap_or(Label::NET), "bridge");
            match running.get(&bridge).is_some() && written.get(&bridge).is_some() {
                true => Live,
                false => NextReboot,
            }
        }
        // The supervisor serves it, where QEMU was started with something to be served.
        (key, _)
            if SCREEN.contains(&key) && running.get(SCREEN[0]).is_some() && !machine.listens =>
        {
            if written.get("display").is_some() {
                Live
            } else {
                NextReboot
            }
        }
        // To another bridge; from or to a user-mode network it is another back end.
        (_, "bridge") if from.is_some() && to.is_some() => Live,
        (key, _) if is_pluggable(key, running, written) => Live,
        _ => NextReboot,
    }
}

/// Whether a disk or NIC that is on one side only can be plugged in, or out, while the guest runs.
fn is_pluggable(key: &str, running: &Facets, written: &Facets) -> bool {
    let Some((kind, name)) = key.split_once('.') else { return false };
    let side = if running.get(key).is_some() { running } else { written };
    // The first of each kind is part of the machine.
    let first = side.names(kind).first() == Some(&name);
    match (kind, name.contains('.')) {
        (NICS, false) => {
            // A QEMU without the host's network cannot give a guest any of it.
            let is_user = |side: &Facets, name: &str| side.get(&nic_key(name, "bridge")).is_none();
            let is_added = running.get(key).is_none();
            let shut_off = !running.names(NICS).iter().any(|name| is_user(running, name))
                && running.get("isolation").is_some_and(|mode| mode != "off");
            !(first || is_added && shut_off && is_user(written, name))
        }
        (DISKS, false) => {
            let says = |property| side.get(&disk_key(name, property));
            !first && says("media") == Some("disk") && says("bus") != Some("sata")
        }
        _ => false,
    }
}

/// The modules of cloud-init that a change is the business of (cloud-init's module reference).
fn reruns(key: &str) -> &'static str {
    match key.rsplit('.').next().unwrap_or(key) {
        "hostname" => "set_hostname, update_etc_hosts",
        "user" => "users_groups",
        "sshAuthorizedKeys" => "users_groups, ssh",
        "passwordHash" => "users_groups, set_passwords",
        "ip" | "gateway" | "dns" => "the network configuration",
        _ => "every module of the user-data",
    }
}

/// What runs, as it was started from `vm`.
pub fn machine(vm: &Vm) -> Machine {
    Machine {
        most_memory: vm.mem,
        listens: false,
        resets: vm.on_guest_reboot == crate::spec::OnGuestReboot::Reset,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec;

    fn vm(text: &str) -> Vm {
        let file = Path::new("/v/web.toml");
        spec::read(&"web".parse().unwrap(), file, text, &mut |_| Ok(vec![])).unwrap()
    }

    fn told(running: &str, written: &str) -> Vec<String> {
        let (from, to) = (vm(running), vm(written));
        let all = pending(&Facets::of(&from), &Facets::of(&to), &machine(&from));
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let line = |p: Pending| {
            format!("{}: {} -> {} {:?}", p.key, word(&p.from), word(&p.to), p.takes_effect)
        };
        all.into_iter().map(line).collect()
    }

    #[test]
    fn when_a_change_is_real() {
        for (running, written, lines) in [
            ("mem = \"2G\"", "mem = \"1G\"", &["mem: 2G -> 1G Live"][..]),
            ("mem = \"1G\"", "mem = \"2G\"", &["mem: 1G -> 2G NextReboot"]),
            (
                "vcpu = 1\nonGuestReboot = \"reset\"",
                "vcpu = 2\nonGuestReboot = \"reset\"",
                &["vcpu: 1 -> 2 NextStart"],
            ),
            ("diskSizeG = 2", "diskSizeG = 3", &["diskSizeG: 2G -> 3G Live"]),
            ("diskSizeG = 3", "diskSizeG = 2", &["diskSizeG: 3G -> 2G Destructive"]),
            (
                "vcpu = 1",
                "diskSizeG = 2",
                &["disk.root.format: - -> qcow2 Ignored", "diskSizeG: - -> 2G Live"],
            ),
            (
                "diskSizeG = 2",
                "vcpu = 1",
                &["disk.root.format: qcow2 -> - Ignored", "diskSizeG: 2G -> - Ignored"],
            ),
            ("bridge = \"br0\"", "bridge = \"br1\"", &["bridge: br0 -> br1 Live"]),
            (
                "vcpu = 1",
                "bridge = \"br1\"",
                &["bridge: - -> br1 NextReboot", "nic.net.tap: - -> qvm-web NextReboot"],
            ),
            (
                "bridge = \"br0\"",
                "bridge = \"br0\"\nantiSpoof = false",
                &["antiSpoof: - -> false Live"],
            ),
            (
                "bridge = \"br0\"\n[nic.lan]\nbridge = \"br1\"\nisolated = true",
                "bridge = \"br0\"\n[nic.lan]\nbridge = \"br1\"\nantiSpoof = false",
                &["nic.lan.antiSpoof: - -> false Live", "nic.lan.isolated: true -> - Live"],
            ),
            (
                "vcpu = 1",
                "bridge = \"br0\"\nantiSpoof = true",
                &[
                    "antiSpoof: - -> true NextReboot",
                    "bridge: - -> br0 NextReboot",
                    "nic.net.tap: - -> qvm-web NextReboot",
                ],
            ),
            // Into a QEMU that is shut off from the host's network none comes while it runs.
            (
                "bridge = \"br0\"",
                "bridge = \"br0\"\n[nic.out]\n",
                &["nic.out: - -> user-mode network, virtio NextReboot"],
            ),
            (
                "isolation = \"off\"\nbridge = \"br0\"",
                "isolation = \"off\"\nbridge = \"br0\"\n[nic.out]\n",
                &["nic.out: - -> user-mode network, virtio Live"],
            ),
            ("cpuWeight = 1", "cpuWeight = 2", &["cpuWeight: 1 -> 2 Live"]),
            ("vcpu = 1", "operators = [\"a\", \"@b\"]", &["operators: - -> a, @b Live"]),
            (
                "[display]\nvnc = \"unix\"",
                "[display]\nvnc = \"127.0.0.1:5900\"\npasswordFile = \"p\"",
                &[
                    "display.passwordFile: - -> /v/p Live",
                    "display.vnc: unix -> 127.0.0.1:5900 Live",
                ],
            ),
            ("[display]\nvnc = \"unix\"", "[display]", &["display.vnc: unix -> - Live"]),
            ("[display]", "[display]\nvnc = \"unix\"", &["display.vnc: - -> unix NextReboot"]),
            (
                "[display]\nvnc = \"unix\"",
                "vcpu = 1",
                &["display: a screen -> - NextReboot", "display.vnc: unix -> - NextReboot"],
            ),
            ("[nic.net]\nlink = \"down\"", "[nic.net]", &["nic.net.link: down -> up Live"]),
            (
                "ip = \"10.0.2.4/24\"\n[cloudInit]",
                "ip = \"10.0.2.5/24\"\n[cloudInit]",
                &["ip: 10.0.2.4/24 -> 10.0.2.5/24 CloudInitRerun"],
            ),
            (
                "[cloudInit]\nuser = \"a\"",
                "vcpu = 1",
                &["cloudInit: a seed -> - NextReboot", "cloudInit.user: a -> - CloudInitRerun"],
            ),
        ] {
            assert_eq!(told(running, written), lines, "{running} | {written}");
        }
    }

    #[test]
    fn a_qemu_that_listens_by_itself_goes_on_as_it_was_told() {
        let (from, to) = (vm("[display]\nvnc = \"unix\""), vm("[display]"));
        let machine = Machine { listens: true, ..machine(&from) };
        let all = pending(&Facets::of(&from), &Facets::of(&to), &machine);
        assert_eq!(all[0].takes_effect, TakesEffect::NextReboot);
    }

    #[test]
    fn a_disk_or_nic_more_or_less_is_one_difference() {
        let disk = "[disk.data]\nsize = \"1G\"\n";
        let nvme = "[disk.data]\nsize = \"1G\"\nbus = \"nvme\"\n";
        let sata = "[disk.data]\nsize = \"1G\"\nbus = \"sata\"\n";
        let path = "[disk.x]\npath = \"/x.qcow2\"\n";
        let nic = "[nic.net]\n[nic.lan]\nbridge = \"br1\"\n";
        for (running, written, lines) in [
            ("vcpu = 1", disk, &["disk.data: - -> 1G, virtio Live"][..]),
            (disk, "vcpu = 1", &["disk.data: 1G, virtio -> - Live"]),
            ("vcpu = 1", nvme, &["disk.data: - -> 1G, nvme Live"]),
            ("vcpu = 1", sata, &["disk.data: - -> 1G, sata NextReboot"]),
            (disk, nvme, &["disk.data.bus: virtio -> nvme NextReboot"]),
            ("vcpu = 1", nic, &["nic.lan: - -> on br1, virtio Live"]),
            (nic, "vcpu = 1", &["nic.lan: on br1, virtio -> - Live"]),
            // The first NIC is part of the machine.
            ("vcpu = 1", "[nic]", &["nic.net: user-mode network, virtio -> - NextReboot"]),
            (
                path,
                "[disk.x]\npath = \"/y.qcow2\"\n",
                &["disk.x.path: /x.qcow2 -> /y.qcow2 NextReboot"],
            ),
        ] {
            assert_eq!(told(running, written), lines, "{running} | {written}");
        }
        let two = |one: &str, other: &str| format!("{one}{other}");
        assert_eq!(
            told(&two(disk, path), &two(path, disk)),
            ["disk: root, data, x -> root, x, data NextReboot"]
        );
        assert_eq!(told(&two(disk, path), path), ["disk.data: 1G, virtio -> - Live"]);
    }

    #[test]
    fn it_is_told_what_cloud_init_would_do_anew() {
        let (from, to) = (vm("[cloudInit]\nuser = \"a\""), vm("[cloudInit]\nuser = \"b\""));
        let all = pending(&Facets::of(&from), &Facets::of(&to), &machine(&from));
        assert_eq!(all[0].reruns.as_deref(), Some("users_groups"));
    }
}
