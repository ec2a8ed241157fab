//! The typed difference between a running VM and its VM file.

pub mod applied;
mod change;
mod disk_keys;
mod key;
mod nic_keys;
mod row;
pub mod running_machine;
mod table;
mod vm_keys;

pub use self::{
    change::{Change, ChangeKind},
    row::{Facts, ScreenServer},
    running_machine::LiveChange,
};
use self::{
    row::{Effect, Row, Sides},
    table::Table,
    vm_keys::{VNC, of_versions, of_vm},
};
use crate::{
    control::change::Pending,
    spec::{OnGuestReboot, Vm},
    value::Label,
};

/// The changes between a running VM and its VM file, in the order of their keys, which are unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmDiff {
    /// The changes.
    pub changes: Vec<Change>,
}

impl VmDiff {
    /// Compares `running`, written as a VM file, with the VM file.
    pub fn between(running: &Vm, written: &Vm, facts: &Facts<'_>) -> Self {
        let mut diff = Self::default();
        let sides = Sides { running, written, facts };
        let mut from = of_vm(running);
        if facts.screen == ScreenServer::Failed {
            let vnc = from.iter_mut().find(|row| row.key == VNC);
            vnc.into_iter().for_each(|row| row.text = Some("not served".to_owned()));
        }
        diff.add_rows(from, of_vm(written), &sides, str::to_owned);
        let versions = [facts.running, facts.installed].map(of_versions);
        let [from, to] = versions;
        diff.add_rows(from, to, &sides, str::to_owned);
        diff.add_tables(&running.disks, &written.disks, &sides);
        diff.add_tables(&running.nics, &written.nics, &sides);
        if running.on_guest_reboot == OnGuestReboot::Reset {
            // A guest reboot does not start another QEMU then.
            let waits = diff.changes.iter_mut().filter(|one| one.kind == ChangeKind::NextReboot);
            waits.for_each(|change| change.kind = ChangeKind::NextStart);
        }
        diff.changes.sort_by(|one, other| one.key.cmp(&other.key));
        diff
    }

    /// Returns true if there is no difference.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns true if the next guest reboot must start another QEMU process.
    pub fn wants_relaunch(&self) -> bool {
        self.changes.iter().any(|change| change.kind == ChangeKind::NextReboot)
    }

    /// Returns the changes that QEMU or the kernel can execute now.
    pub fn live(&self) -> Vec<LiveChange> {
        let live = |change: &Change| match &change.kind {
            ChangeKind::Live(change) => Some(change.clone()),
            _ => None,
        };
        self.changes.iter().filter_map(live).collect()
    }

    /// Returns the changes for the output of `status` and `qvm diff`.
    pub fn pending(&self) -> Vec<Pending> {
        self.changes.iter().map(Pending::from).collect()
    }

    fn add(&mut self, key: String, from: Option<String>, to: Option<String>, kind: ChangeKind) {
        self.changes.push(Change { key, from, to, kind });
    }

    /// Adds the rows that differ; both sides have the same rows.
    fn add_rows<T>(
        &mut self,
        from: impl IntoIterator<Item = Row<T>>,
        to: impl IntoIterator<Item = Row<T>>,
        sides: &Sides<'_, T>,
        key: impl Fn(&str) -> String,
    ) {
        for (from, to) in from.into_iter().zip(to) {
            if from.text != to.text {
                self.add(key(from.key), from.text, to.text, from.effect.kind(from.key, sides));
            }
        }
    }

    /// Adds the differences between disks or NICs.
    fn add_tables<T: Table>(&mut self, from: &[T], to: &[T], vms: &Sides<'_, Vm>) {
        let find = |all: &'_ [T], name: &Label| all.iter().position(|one| one.name() == name);
        let order = |side: &[T], other: &[T]| -> Vec<String> {
            let common = side.iter().filter(|one| find(other, one.name()).is_some());
            common.map(|one| one.name().to_string()).collect()
        };
        // A table at the end does not change the order of the others.
        let (before, after) = (order(from, to), order(to, from));
        if before != after {
            let [before, after] = [before, after].map(|names| Some(names.join(", ")));
            self.add(T::TABLE.to_owned(), before, after, ChangeKind::NextReboot);
        }
        for (place, running) in from.iter().enumerate() {
            let name = running.name();
            match find(to, name).and_then(|place| to.get(place)) {
                Some(written) => {
                    let sides = Sides { running, written, facts: vms.facts };
                    let key = |property: &str| T::key(name, property);
                    self.add_rows(running.rows(), written.rows(), &sides, key);
                }
                None => {
                    let (key, text) = (key::of_table(T::TABLE, name), running.summary());
                    self.add(key, Some(text), None, running.removed(place));
                }
            }
        }
        for (place, written) in to.iter().enumerate() {
            if find(from, written.name()).is_none() {
                let key = key::of_table(T::TABLE, written.name());
                let kind = written.added(place, vms.running);
                self.add(key, None, Some(written.summary()), kind);
            }
        }
    }
}

/// Copies the values that take effect as soon as the VM file is applied: those that only qvm uses.
pub fn copy_at_once(to: &mut Vm, from: &Vm) {
    for row in of_vm(from) {
        if let Effect::AtOnce(copy) = row.effect {
            copy(to, from);
        }
    }
}

/// Returns the keys of a VM file with the wording of the reference for when a change takes effect.
/// The keys of an image are combined in `image`.
pub fn effects(vm: &Vm) -> Vec<(String, &'static str)> {
    fn of<T: Table>(all: &[T]) -> impl Iterator<Item = (String, &'static str)> {
        let row = |one: &T, row: Row<T>| (T::key(one.name(), row.key), row.effect.words());
        all.iter().flat_map(move |one| one.rows().into_iter().map(move |this| row(one, this)))
    }
    let rows = of_vm(vm).into_iter().map(|row| (row.key.to_owned(), row.effect.words()));
    rows.chain(of(&vm.disks)).chain(of(&vm.nics)).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use proptest::{
        collection::vec,
        prelude::*,
        sample::{select, subsequence},
    };

    use super::{
        applied::Applied,
        running_machine::{RunningMachine, Versions},
        *,
    };
    use crate::{
        control::change::TakesEffect,
        spec::{self, Link},
    };

    fn vm(text: &str) -> Vm {
        let file = Path::new("/v/web.toml");
        let read = spec::read(&"web".parse().unwrap(), file, text, &mut |_| Ok(vec![]));
        read.unwrap_or_else(|problems| panic!("{text}\n{}", problems[0]))
    }

    fn diff_of(running: &Vm, written: &Vm, max_memory: crate::value::Size) -> VmDiff {
        let versions = Versions::default();
        let facts = Facts {
            max_memory,
            screen: ScreenServer::Supervisor,
            running: &versions,
            installed: &versions,
        };
        VmDiff::between(running, written, &facts)
    }

    fn diff(running: &Vm, written: &Vm) -> VmDiff {
        diff_of(running, written, running.mem)
    }

    const TOP: [&str; 24] = [
        "description = \"a\"",
        "autostart = true",
        "after = [\"db\"]",
        "vcpu = 4",
        "mem = \"2G\"",
        "cpuWeight = 200",
        "cpuQuota = 150",
        "cpu.pin = [\"0-1\"]",
        "memoryMax = \"3G\"",
        "ioWeight = 50",
        "oomScoreAdjust = -500",
        "ready = \"agent\"",
        "readyTimeoutSec = 60",
        "readyFailure = \"fail\"",
        "hostShutdown = \"suspend\"",
        "shutdownTimeoutSec = 300",
        "accel = \"tcg\"",
        "firmware = \"uefi\"",
        "operators = [\"alice\"]",
        "isolation = \"off\"",
        "onPanic = \"pause\"",
        "onGuestReboot = \"reset\"",
        "tapHeal = \"off\"",
        "cloudInit = { user = \"a\" }",
    ];
    const DISPLAY: [&str; 4] = [
        "",
        "display = {}",
        "display.vnc = \"unix\"",
        "display = { vnc = \"127.0.0.1:5901\", passwordFile = \"/p\" }",
    ];
    const ROOT: [&str; 5] = [
        "",
        "diskSizeG = 2",
        "diskSizeG = 3",
        "image.path = \"/a b.qcow2\"",
        "disk.root.bus = \"nvme\"",
    ];
    // Names of keys are names of disks and NICs as well.
    const DISKS: [&str; 4] = ["data", "size", "image", "format"];
    const DISK: [&str; 12] = [
        "size = \"1G\", iops = 100, iopsBurst = 200, iopsBurstSec = 2, bandwidth = \"1M\"",
        "size = \"1G\", iopsRead = 5, bandwidthWrite = \"2M\", bandwidthWriteBurst = \"4M\"",
        "size = \"1G\", iops = 7, cache = \"none\", iothread = true, logicalBlockSize = 4096",
        "size = \"1G\"",
        "size = \"2G\"",
        "size = \"1G\", bus = \"nvme\", format = \"raw\"",
        "size = \"1G\", bus = \"sata\"",
        "path = \"/NAME.iso\", media = \"cdrom\"",
        "path = \"/NAME.img\", format = \"raw\", readOnly = true",
        "device = \"/dev/NAME\"",
        "image = { url = \"https://a/NAME\", checksums = \"https://a/SUMS\" }, clone = \"overlay\"",
        "image = { path = \"/a b.qcow2\", sha256 = \"HEX\" }, size = \"4G\"",
    ];
    const NICS: [&str; 4] = ["net", "link", "ip", "bridge"];
    const NIC: [&str; 9] = [
        "",
        "link = \"down\", model = \"e1000e\"",
        "bridge = \"br0\"",
        "bridge = \"br1\"",
        "bridge = \"br0\", isolated = true, link = \"down\"",
        "bridge = \"br1\", antiSpoof = false, tap = \"tap-NAME\"",
        "bridge = \"br0\", antiSpoof = true, mtu = 1400",
        "antiSpoof = false",
        "dns = [\"9.9.9.9\", \"1.1.1.1\"]",
    ];

    /// A subset of `names` in any order, each with one of `texts`.
    fn tables(
        kind: &'static str,
        names: &'static [&'static str],
        texts: &'static [&'static str],
    ) -> impl Strategy<Value = String> {
        let some = subsequence(names, 0..=names.len()).prop_shuffle();
        (some, vec(select(texts), names.len())).prop_map(move |(names, texts)| {
            let table = |(name, text): (&&str, &str)| {
                let text = text.replace("NAME", name).replace("HEX", &"0".repeat(64));
                format!("{kind}.{name} = {{ {text} }}\n")
            };
            names.iter().zip(texts).map(table).collect()
        })
    }

    fn vms() -> impl Strategy<Value = Vm> {
        let top = subsequence(&TOP[..], 0..=TOP.len());
        let parts = (top, select(&DISPLAY[..]), select(&ROOT[..]));
        let tables = (tables("disk", &DISKS, &DISK), tables("nic", &NICS, &NIC));
        (parts, tables).prop_map(|((top, display, root), (disks, nics))| {
            // Names of DNS servers need a seed.
            let dns = nics.contains("dns") && !top.iter().any(|key| key.starts_with("cloudInit"));
            let seed = if dns { "cloudInit = {}" } else { "" };
            let text = format!("{}\n{seed}\n{display}\n{root}\n{disks}{nics}", top.join("\n"));
            vm(if text.trim().is_empty() { "vcpu = 1" } else { &text })
        })
    }

    /// Returns true for a key or a table of the reference.
    fn is_in_reference(key: &str) -> bool {
        let named = |table: &str| {
            let rest = key.strip_prefix(table)?.strip_prefix('.')?;
            let rest = rest.split_once('.').map_or("", |(_, rest)| rest);
            Some(format!("{table}.NAME.{rest}").trim_end_matches('.').to_owned())
        };
        let key = named("disk").or_else(|| named("nic")).unwrap_or_else(|| key.to_owned());
        let table = format!("{key}.");
        spec::keys().iter().any(|other| *other == key || other.starts_with(&table))
    }

    proptest! {
        #[test]
        fn same_file_has_no_changes(a in vms()) {
            prop_assert_eq!(diff(&a, &a), VmDiff::default());
        }

        #[test]
        fn keys_are_unique_and_documented(a in vms(), b in vms()) {
            let changes = diff(&a, &b).changes;
            prop_assert!(changes.is_sorted_by(|one, other| one.key < other.key), "{:?}", changes);
            for change in changes {
                prop_assert!(is_in_reference(&change.key), "{}", change.key);
                prop_assert!(change.from != change.to);
            }
        }

        #[test]
        fn applied_changes_are_not_pending(a in vms(), b in vms()) {
            let mut machine = RunningMachine::started_from(a.clone());
            let mut record = Applied::new();
            let first = diff(&a, &b);
            for change in &first.changes {
                match &change.kind {
                    ChangeKind::AtOnce => copy_at_once(machine.started_mut(), &b),
                    ChangeKind::Screen => {
                        machine.started_mut().display.clone_from(&b.display);
                    }
                    ChangeKind::Live(live) => {
                        prop_assert_eq!(live.key(), change.key.as_str());
                        let before = machine.clone();
                        machine.record(live);
                        record.extend(applied::entries(&before, &machine));
                    }
                    _ => {}
                }
            }
            let running = machine.current();
            let left = diff_of(&running, &b, a.mem);
            for change in &left.changes {
                prop_assert!(change.takes_effect() != TakesEffect::Live, "{:?}", change);
            }
            // The next supervisor finds the same machine.
            let (read, unread) = applied::machine(machine.started(), &record);
            prop_assert_eq!(unread, Vec::<String>::new());
            prop_assert_eq!(read.is_replugged(), machine.is_replugged());
            prop_assert_eq!(diff(&read.current(), &running), VmDiff::default());
        }
    }

    #[test]
    fn reference_has_the_effects_of_the_rows() {
        let vm = vm("disk.x.size = \"1G\"\n[nic.net]\n[nic.x]\n");
        let effects: BTreeMap<String, &str> = effects(&vm).into_iter().collect();
        for key in spec::reference::reference().sections.iter().flat_map(|section| &section.keys) {
            let name = key.name.replace("NAME", "x");
            // An image is one row.
            let image = name.split_once("image.").map(|(table, _)| format!("{table}image"));
            let effect = effects.get(&name).or_else(|| effects.get(&image?));
            assert_eq!(effect.copied(), Some(key.effect.as_str()), "{}", key.name);
        }
    }

    #[test]
    fn disk_may_be_named_like_a_key() {
        let changes =
            diff(&vm("vcpu = 1"), &vm("disk.size.size = \"1G\"\nnic.link = {}")).pending();
        let effects: Vec<_> =
            changes.iter().map(|one| (one.key.as_str(), one.takes_effect)).collect();
        assert_eq!(effects[0], ("disk.size", TakesEffect::Live));
    }

    #[test]
    fn changed_tap_keeps_pending_values() {
        let from = "bridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\n";
        let to = "bridge = \"br1\"\nmac = \"52:54:00:00:00:02\"\nantiSpoof = false\n\
                  [nic.net]\ntap = \"t0\"\n";
        let (from, to) = (vm(from), vm(to));
        let live = diff(&from, &to).live();
        let [LiveChange::FilterNic(filtered), LiveChange::MoveNic(moved)] = live.as_slice() else {
            panic!("{live:?}")
        };
        assert_eq!((filtered.mac, moved.mac), (from.nics[0].mac, from.nics[0].mac));
        let Link::Bridge { bridge, tap } = &moved.link else { panic!("{moved:?}") };
        assert_eq!((bridge.as_str(), tap.as_str()), ("br1", "qvm-web"));
    }
}
