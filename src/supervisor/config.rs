//! The VM as it runs beside its VM file as it is now.

use super::{file_reading::Files, operators::Operators, running::taps::wanted::WantedTaps};
use crate::{
    control::{
        authorizer::Authorizer,
        types::{Pending, TapOf},
    },
    machine::{
        facets::{self, DISKS, Facets, MEM, NICS, nic_key},
        live::Change,
        pending::{self, AT_ONCE, pending, wants_relaunch},
        user_network,
    },
    net::tap_spec,
    spec::Vm,
    store::{identity::Identity, record::Record},
    value::{Label, Operator, Size},
};

/// The keys of what no VM file contains: QEMU, its firmware, and the instance-id of cloud-init.
const QEMU: &str = "qemu";
const FIRMWARE: &str = "firmware file";
const INSTANCE: &str = "instance-id";

/// The search for operators that the host does not know.
pub(crate) type UnknownOperators = futures_util::future::BoxFuture<'static, Vec<Operator>>;

/// The VM as it runs beside its VM file as it is now.
#[derive(Debug)]
pub(crate) struct Config {
    /// The VM file that QEMU was started from, with what was applied since.
    vm: Vm,
    text: String,
    /// The same key by key, with what was done to the machine since.
    running: Facets,
    /// The VM file as it is now, or as it was when it was valid last.
    written: Vm,
    written_text: String,
    /// Why the VM file is not valid.
    problem: Option<String>,
    files: Files,
    pending: Vec<Pending>,
    operators: Operators,
}

impl Config {
    /// A VM that is to be started from this VM file.
    pub(crate) fn new(vm: Vm, text: String) -> Self {
        Self {
            running: Facets::of(&vm),
            written: vm.clone(),
            written_text: text.clone(),
            problem: None,
            files: Files::default(),
            pending: vec![],
            operators: Operators::new(),
            vm,
            text,
        }
    }

    /// The VM as it runs.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The VM file that QEMU was started from.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The VM file as it is now, or as it was when it was valid last.
    pub(crate) fn written(&self) -> &Vm {
        &self.written
    }

    /// The text of [`Self::written`].
    pub(crate) fn written_text(&self) -> &str {
        &self.written_text
    }

    /// Why the VM file is not valid.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The files beside the VM file, as they were read last.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Where the VM file differs from what runs.
    pub(crate) fn pending(&self) -> &[Pending] {
        &self.pending
    }

    /// Whether a reboot of the guest has to bring a new QEMU process.
    pub(crate) fn wants_relaunch(&self) -> bool {
        wants_relaunch(&self.pending)
    }

    /// The authorization rule of the VM, which follows `operators`.
    pub(crate) fn grant(&self) -> Authorizer {
        self.operators.grant(&self.vm)
    }

    /// Notes which operators the host does not know.
    pub(crate) fn set_unknown_operators(&mut self, names: Vec<Operator>) {
        self.operators.set_unknown(names);
    }

    /// What an operator should know.
    pub(crate) fn operator_notes(&self) -> impl Iterator<Item = String> + '_ {
        self.operators.notes()
    }

    /// The VM file was read, or is not valid; so were the files beside it.
    pub(crate) fn on_read(&mut self, written: Result<(Vm, String), String>, files: Files) {
        match written {
            Ok((vm, text)) => {
                (self.written, self.written_text) = (vm, text);
                self.problem = None;
            }
            Err(problem) => self.problem = Some(problem),
        }
        self.files = files;
    }

    /// The identity was read, or made, before the VM file was read again.
    pub(crate) fn set_identity(&mut self, identity: Option<Identity>) {
        self.files.identity = identity;
        self.files.is_read = true;
    }

    /// QEMU is started from this VM file, or was.
    pub(crate) fn set_running(&mut self, vm: Vm, text: String) -> Option<UnknownOperators> {
        self.running = Facets::of(&vm);
        self.vm = vm;
        self.text = text;
        self.set_operators()
    }

    /// QEMU is started anew: nothing is pending.
    pub(crate) fn clear_pending(&mut self) {
        self.pending.clear();
    }

    /// Puts `operators` of the VM as it runs into effect.
    pub(crate) fn set_operators(&mut self) -> Option<UnknownOperators> {
        let search = self.operators.set(self.vm.operators.clone())?;
        Some(Box::pin(search))
    }

    /// Puts the keys of a VM file into effect that count for a running guest at once.
    pub(crate) fn apply_live_keys(
        &mut self,
        new: Vm,
        owner: Option<ScreenOwner>,
    ) -> Option<UnknownOperators> {
        self.take_facets(&new, &AT_ONCE);
        self.move_screen(&new, owner);
        self.vm.description = new.description;
        self.vm.autostart = new.autostart;
        self.vm.after = new.after;
        self.vm.cpu_weight = new.cpu_weight;
        self.vm.cpu_quota = new.cpu_quota;
        self.vm.memory_max = new.memory_max;
        self.vm.io_weight = new.io_weight;
        self.vm.oom_score_adjust = new.oom_score_adjust;
        self.vm.cpu_pin = new.cpu_pin;
        self.vm.ready_failure = new.ready_failure;
        self.vm.host_shutdown = new.host_shutdown;
        self.vm.shutdown_timeout = new.shutdown_timeout;
        self.vm.operators = new.operators;
        self.vm.on_panic = new.on_panic;
        self.vm.on_guest_reboot = new.on_guest_reboot;
        self.vm.tap_heal = new.tap_heal;
        self.vm.lines = new.lines;
        self.set_operators()
    }

    /// Takes another address or another password for the screen, where the supervisor serves it.
    fn move_screen(&mut self, new: &Vm, owner: Option<ScreenOwner>) {
        let (Some(runs), Some(written)) = (&mut self.vm.display, &new.display) else { return };
        if owner == Some(ScreenOwner::Qemu) || runs.vnc.is_none() {
            return;
        }
        runs.clone_from(written);
        self.take_facets(new, &facets::SCREEN);
    }

    /// The screen is where `booted` has it: a QEMU that listens for viewers itself does so where it was told when it was started.
    pub(crate) fn keep_screen_of(&mut self, booted: &Vm) {
        self.take_facets(booted, &facets::SCREEN);
        self.vm.display.clone_from(&booted.display);
    }

    /// The changes that can be applied to the machine while it runs.
    pub(crate) fn live_changes(&self) -> Vec<Change> {
        self.pending.iter().filter_map(|one| Change::of(one, &self.written)).collect()
    }

    /// A change was applied to the machine; `written` is what it was applied from. Returns the same for the run record.
    pub(crate) fn record_change(
        &mut self,
        change: &Change,
        written: &Facets,
    ) -> Vec<(String, Option<String>)> {
        let done = change.done(&self.running, written);
        for (key, value) in &done {
            self.running.set(key.as_str(), value.clone());
        }
        done
    }

    /// The target of the balloon in bytes; `None` where the guest is to have all that it was started with.
    pub(crate) fn memory_target(&self) -> Option<u64> {
        let mem = self.running.get(MEM).and_then(|text| text.parse::<Size>().ok());
        mem.filter(|size| *size != self.vm.mem).map(|size| size.bytes())
    }

    /// The removals of all disks and NICs that the machine has.
    pub(crate) fn removals(&self) -> Vec<Change> {
        let disks = self.disks().into_iter().map(Change::RemoveDisk);
        disks.chain(self.labels(NICS).map(Change::RemoveNic)).collect()
    }

    /// The disks that the machine has.
    pub(crate) fn disks(&self) -> Vec<Label> {
        self.labels(DISKS).collect()
    }

    fn labels(&self, kind: &str) -> impl Iterator<Item = Label> + '_ {
        self.running.names(kind).into_iter().filter_map(|name| name.parse::<Label>().ok())
    }

    /// The NICs that have a tap.
    pub(crate) fn nic_taps(&self) -> Vec<TapOf> {
        let tap = |nic: &str| {
            let tap = self.running.get(&nic_key(nic, "tap"))?.to_owned();
            Some(TapOf { nic: nic.to_owned(), tap })
        };
        self.running.names(NICS).into_iter().filter_map(tap).collect()
    }

    /// How the taps are to be.
    pub(crate) fn wanted_taps(&self, examining: Examining) -> WantedTaps {
        let taps = tap_spec::running(&self.vm.name, &self.running);
        let identity = self.files.identity.as_ref().filter(|_| !taps.is_empty());
        WantedTaps {
            heal: self.vm.tap_heal,
            macs: identity.map(|identity| identity.macs.clone()).unwrap_or_default(),
            taps,
            // Without the addresses a filter would be another.
            held: examining == Examining::Suspended || !self.files.is_read,
        }
    }

    /// What an operator should know of the networks.
    pub(crate) fn network_notes(&self) -> Vec<String> {
        user_network::notes(&self.running)
    }

    /// Devices were plugged in or out since QEMU was started: no other QEMU could be started like it.
    pub(crate) fn is_replugged(&self, record: &Record) -> bool {
        record.applied.keys().any(|key| key == DISKS || key == NICS)
    }

    /// The screen is not served as the VM file says, so that the next `qvm apply` tries again.
    pub(crate) fn set_screen_unserved(&mut self) {
        self.running.set(facets::SCREEN[0], Some("not served".to_owned()));
    }

    fn take_facets(&mut self, from: &Vm, keys: &[&str]) {
        let facets = Facets::of(from);
        for key in keys {
            self.running.set(*key, facets.get(key).map(str::to_owned));
        }
    }

    /// Notes what runs beside the VM file: when QEMU was launched or adopted.
    pub(crate) fn recall(&mut self, record: &Record) {
        let firmware = record.firmware.as_ref().map(|(path, at)| built(path, *at));
        self.running.set(QEMU, Some(record.qemu_version.clone()));
        self.running.set(FIRMWARE, firmware);
        self.running.set(INSTANCE, record.instance.clone());
        for (key, value) in &record.applied {
            self.running.set(key.as_str(), value.clone());
        }
    }

    /// Compares the VM file with what runs. `running` is of the QEMU process, where there is one.
    pub(crate) fn compare(&mut self, running: Option<RunningQemu<'_>>) {
        let listens = running.as_ref().map_or(ScreenOwner::Supervisor, |qemu| qemu.screen);
        let written = self.would_run(running);
        let machine = pending::Machine {
            listens: listens == ScreenOwner::Qemu,
            ..pending::machine(&self.vm)
        };
        self.pending = pending(&self.running, &written, &machine);
    }

    /// What would run if QEMU were started now.
    pub(crate) fn would_run(&self, running: Option<RunningQemu<'_>>) -> Facets {
        let mut written = Facets::of(&self.written);
        let Some(RunningQemu { record, installed, .. }) = running else { return written };
        let same = |key: &str| self.running.get(key).map(str::to_owned);
        written.set(QEMU, installed.map(str::to_owned).or_else(|| same(QEMU)));
        let firmware = record.firmware.as_ref();
        let now = firmware.and_then(|(path, _)| Some(built(path, self.files.firmware?)));
        written.set(FIRMWARE, now.or_else(|| same(FIRMWARE)));
        let seeded = self.written.cloud_init.is_some() && record.instance.is_some();
        let identity = self.files.identity.as_ref().filter(|_| seeded);
        let instance = identity.map(|identity| identity.instance_id.clone());
        written.set(INSTANCE, instance.or_else(|| same(INSTANCE)));
        written
    }
}

/// What of a QEMU process the VM file is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunningQemu<'a> {
    /// Its run record.
    pub(crate) record: &'a Record,
    /// The version of the QEMU that is installed, where it is another.
    pub(crate) installed: Option<&'a str>,
    /// Who listens for viewers of the screen.
    pub(crate) screen: ScreenOwner,
}

/// Who listens for viewers of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScreenOwner {
    /// The supervisor.
    Supervisor,
    /// QEMU: an earlier qvm started it so.
    Qemu,
}

/// Whether the taps are examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Examining {
    /// They are.
    Active,
    /// The machine is being changed.
    Suspended,
}

/// A firmware file, told from another of that path by when it was written.
fn built(path: &std::path::Path, at: i64) -> String {
    let at = jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string());
    format!("{} of {at}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::{record, vm};

    const BASE: &str = "mem = \"1G\"\nvcpu = 1\n";

    /// A VM that runs `running`, whose VM file is `written` by now.
    fn config(running: &str, written: &str) -> Config {
        let mut config = Config::new(vm(running), running.to_owned());
        config.on_read(Ok((vm(written), written.to_owned())), Files::default());
        config
    }

    fn keys(config: &mut Config) -> Vec<String> {
        config.compare(None);
        config.pending().iter().map(|one| one.key.clone()).collect()
    }

    #[test]
    fn fresh_vm_has_no_difference() {
        let mut config = Config::new(vm(BASE), BASE.to_owned());
        assert_eq!(keys(&mut config), Vec::<String>::new());
        assert_eq!((config.text(), config.written_text()), (BASE, BASE));
        assert!(!config.wants_relaunch() && config.live_changes().is_empty());
        assert_eq!(config.memory_target(), None);
    }

    #[test]
    fn live_keys_are_in_effect_at_once() {
        let written = format!("{BASE}description = \"d\"\ncpuWeight = 200\n");
        let mut config = config(BASE, &written);
        assert_eq!(keys(&mut config), ["cpuWeight", "description"]);
        config.apply_live_keys(vm(&written), None);
        assert_eq!(keys(&mut config), Vec::<String>::new());
        assert_eq!(config.vm().description.as_deref(), Some("d"));
        assert_eq!(config.vm().cpu_weight.get(), 200);
    }

    #[test]
    fn other_keys_wait_for_a_relaunch() {
        let written = BASE.replace("vcpu = 1", "vcpu = 2");
        let mut config = config(BASE, &written);
        config.apply_live_keys(vm(&written), None);
        assert_eq!(keys(&mut config), ["vcpu"]);
        assert!(config.wants_relaunch());
        config.set_running(vm(&written), written);
        assert_eq!(keys(&mut config), Vec::<String>::new());
    }

    #[test]
    fn invalid_file_keeps_what_was_valid() {
        let mut config = config(BASE, BASE);
        config.on_read(Err("line 1".into()), Files { orphan: true, ..Files::default() });
        assert_eq!(config.problem(), Some("line 1"));
        assert!(config.files().orphan);
        assert_eq!(config.written_text(), BASE);
        config.on_read(Ok((vm(BASE), BASE.into())), Files::default());
        assert_eq!(config.problem(), None);
    }

    #[test]
    fn executed_change_is_no_difference_any_more() {
        let written = BASE.replace("1G", "512M");
        let mut config = config(BASE, &written);
        keys(&mut config);
        let changes = config.live_changes();
        assert_eq!(changes.len(), 1);
        let would_run = config.would_run(None);
        let done = config.record_change(&changes[0], &would_run);
        assert!(!done.is_empty());
        assert_eq!(keys(&mut config), Vec::<String>::new());
        assert_eq!(config.memory_target(), Some(512 << 20));
        // The next supervisor reads the same from the run record.
        let mut next = config_of_next(BASE, &written);
        let record = Record { applied: done.into_iter().collect(), ..record() };
        next.recall(&record);
        assert_eq!(next.memory_target(), Some(512 << 20));
        assert!(!next.is_replugged(&record));
    }

    fn config_of_next(running: &str, written: &str) -> Config {
        config(running, written)
    }

    #[test]
    fn plugged_disk_makes_the_machine_another() {
        let written = format!("{BASE}[disk.data]\nsize = \"1G\"\n");
        let mut config = config(BASE, &written);
        keys(&mut config);
        let changes = config.live_changes();
        assert!(matches!(changes[..], [Change::AddDisk(_)]), "{changes:?}");
        let would_run = config.would_run(None);
        let done = config.record_change(&changes[0], &would_run);
        let record = Record { applied: done.into_iter().collect(), ..record() };
        assert!(config.is_replugged(&record));
        let disks: Vec<String> = config.disks().iter().map(ToString::to_string).collect();
        assert_eq!(disks, ["root", "data"]);
        assert_eq!(config.removals().len(), 3);
    }

    #[test]
    fn another_qemu_is_a_difference() {
        let mut config = config(BASE, BASE);
        let record = record();
        config.recall(&record);
        let screen = ScreenOwner::Supervisor;
        let running = RunningQemu { record: &record, installed: None, screen };
        config.compare(Some(running));
        assert_eq!(config.pending(), []);
        config.compare(Some(RunningQemu { installed: Some("99.0.0"), ..running }));
        assert_eq!(config.pending()[0].key, "qemu");
        assert_eq!(config.pending()[0].to.as_deref(), Some("99.0.0"));
    }

    #[test]
    fn screen_moves_where_the_supervisor_serves_it() {
        let unix = format!("{BASE}[display]\nvnc = \"unix\"\n");
        let port = format!("{BASE}[display]\nvnc = \"127.0.0.1:5901\"\npasswordFile = \"p\"\n");
        for (owner, moves) in
            [(None, true), (Some(ScreenOwner::Supervisor), true), (Some(ScreenOwner::Qemu), false)]
        {
            let mut config = config(&unix, &port);
            config.apply_live_keys(vm(&port), owner);
            let display = config.vm().display.clone().unwrap();
            assert_eq!(display == vm(&port).display.unwrap(), moves, "{owner:?}");
        }
        // A QEMU without a screen gets none.
        let mut config = config(BASE, &unix);
        config.apply_live_keys(vm(&unix), None);
        assert!(config.vm().display.is_none());
    }

    #[test]
    fn screen_that_is_not_served_is_a_difference() {
        let unix = format!("{BASE}[display]\nvnc = \"unix\"\n");
        let mut config = config(&unix, &unix);
        config.set_screen_unserved();
        assert_eq!(keys(&mut config), ["display.vnc"]);
        config.keep_screen_of(&vm(&unix));
        assert_eq!(keys(&mut config), Vec::<String>::new());
    }

    #[test]
    fn taps_are_wanted_when_the_identity_is_read() {
        let bridged = format!("{BASE}bridge = \"br0\"\n");
        let mut config = config(&bridged, &bridged);
        let wanted = config.wanted_taps(Examining::Active);
        assert!(wanted.held && wanted.taps.len() == 1);
        config.set_identity(None);
        assert!(!config.wanted_taps(Examining::Active).held);
        assert!(config.wanted_taps(Examining::Suspended).held);
        let taps = config.nic_taps();
        assert_eq!((taps[0].nic.as_str(), taps[0].tap.as_str()), ("net", "qvm-web"));
    }

    #[test]
    fn unreachable_address_is_noted() {
        let text = format!("{BASE}ip = \"192.168.5.2/24\"\n");
        assert_eq!(config(&text, &text).network_notes().len(), 1);
        assert_eq!(config(BASE, BASE).network_notes(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn operators_are_searched_for_when_they_change() {
        let mut config = config(BASE, BASE);
        assert!(config.set_operators().is_none());
        let text = format!("{BASE}operators = [\"nosuchuser-qvm\", \"root\"]\n");
        let search = config.apply_live_keys(vm(&text), None).unwrap();
        let unknown = search.await;
        assert_eq!(unknown.len(), 1);
        config.set_unknown_operators(unknown);
        let notes: Vec<String> = config.operator_notes().collect();
        assert!(notes[0].contains("nosuchuser-qvm"), "{notes:?}");
        let grant = config.grant();
        assert_eq!(grant.operators.borrow().len(), 2);
    }
}
