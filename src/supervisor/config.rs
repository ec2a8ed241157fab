//! The configuration of the running VM and the current VM file.

use tracing::warn;

use super::{file_reading::Files, operators::Operators, running::taps::wanted::WantedTaps};
use crate::{
    control::{
        authorizer::Authorizer,
        types::{DiskLimit, NicTap, Pending},
    },
    machine::{
        diff::{
            Facts, LiveChange, ScreenServer, VmDiff, applied, copy_at_once,
            running_machine::{RunningMachine, Versions},
        },
        user_network,
    },
    net::tap_spec,
    spec::{Disk, Link, Nic, Vm},
    store::{identity::Identity, record::Record},
    value::{Label, Note, Operator},
};

/// The search for operators that the host does not know.
pub(crate) type UnknownOperators = futures_util::future::BoxFuture<'static, Vec<Operator>>;

/// The configuration of the running VM and the current VM file.
#[derive(Debug)]
pub(crate) struct Config {
    /// The machine of QEMU.
    running: RunningMachine,
    /// The text of the VM file that QEMU was started from.
    started_text: String,
    /// The last valid version of the VM file.
    written: Vm,
    written_text: String,
    /// Why the VM file is not valid.
    problem: Option<String>,
    files: Files,
    diff: VmDiff,
    operators: Operators,
}

impl Config {
    /// Creates the configuration of a VM to start from this VM file.
    pub(crate) fn new(vm: Vm, text: String) -> Self {
        Self {
            running: RunningMachine::started_from(vm.clone()),
            written: vm,
            written_text: text.clone(),
            started_text: text,
            problem: None,
            files: Files::default(),
            diff: VmDiff::default(),
            operators: Operators::new(),
        }
    }

    /// Returns the VM file that QEMU was started from, with the keys that took effect at once.
    pub(crate) fn vm(&self) -> &Vm {
        self.running.started()
    }

    /// Returns the text of the VM file that QEMU was started from.
    pub(crate) fn text(&self) -> &str {
        &self.started_text
    }

    /// The last valid version of the VM file.
    pub(crate) fn written(&self) -> &Vm {
        &self.written
    }

    /// Returns the text of [`Self::written`].
    pub(crate) fn written_text(&self) -> &str {
        &self.written_text
    }

    /// Why the VM file is not valid.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Returns the last read state of the files beside the VM file.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Returns the differences between the VM file and the running VM.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        self.diff.pending()
    }

    /// Whether a reboot of the guest requires a new QEMU process.
    pub(crate) fn wants_relaunch(&self) -> bool {
        self.diff.wants_relaunch()
    }

    /// The authorization rule of the VM, which follows `operators`.
    pub(crate) fn authorizer(&self) -> Authorizer {
        self.operators.authorizer(self.vm())
    }

    /// Sets the operators that the host does not know.
    pub(crate) fn set_unknown_operators(&mut self, names: Vec<Operator>) {
        self.operators.set_unknown(names);
    }

    /// Returns the notes for the status.
    pub(crate) fn operator_notes(&self) -> impl Iterator<Item = Note> + '_ {
        self.operators.notes()
    }

    /// Stores the result of a reading of the VM file and the files beside it.
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

    /// Sets the identity, known before the next reading of the VM file.
    pub(crate) fn set_identity(&mut self, identity: Option<Identity>) {
        self.files.identity = identity;
        self.files.is_read = true;
    }

    /// Sets the VM file that QEMU is started from.
    pub(crate) fn set_running(&mut self, vm: Vm, text: String) -> Option<UnknownOperators> {
        self.running = RunningMachine::started_from(vm);
        self.started_text = text;
        self.set_operators()
    }

    /// Clears the pending changes, for a new QEMU process.
    pub(crate) fn clear_diff(&mut self) {
        self.diff = VmDiff::default();
    }

    /// Applies `operators` of the running VM.
    pub(crate) fn set_operators(&mut self) -> Option<UnknownOperators> {
        let search = self.operators.set(self.vm().operators.clone())?;
        Some(Box::pin(search))
    }

    /// Applies the keys of a VM file that take effect on a running guest at once.
    pub(crate) fn apply_live_keys(
        &mut self,
        new: Vm,
        owner: Option<ScreenOwner>,
    ) -> Option<UnknownOperators> {
        copy_at_once(self.running.started_mut(), &new);
        self.move_screen(&new, owner);
        self.running.started_mut().lines = new.lines;
        self.set_operators()
    }

    /// Applies the address and the password of the screen if the supervisor serves it.
    fn move_screen(&mut self, new: &Vm, owner: Option<ScreenOwner>) {
        let started = &mut self.running.started_mut().display;
        let (Some(display), Some(written)) = (started, &new.display) else { return };
        if owner == Some(ScreenOwner::Qemu) || display.vnc.is_none() {
            return;
        }
        display.clone_from(written);
        self.running.is_screen_failed = false;
    }

    /// Keeps the screen of `booted`: a QEMU process that listens for viewers itself cannot change
    /// its address.
    pub(crate) fn keep_screen_of(&mut self, booted: &Vm) {
        self.running.is_screen_failed = false;
        self.running.started_mut().display.clone_from(&booted.display);
    }

    /// Returns the changes that can be applied to the running machine.
    pub(crate) fn live_changes(&self) -> Vec<LiveChange> {
        self.diff.live()
    }

    /// Stores an applied change of the machine. Returns it for the run record.
    pub(crate) fn record_change(&mut self, change: &LiveChange) -> Vec<(String, Option<String>)> {
        let before = self.running.clone();
        self.running.record(change);
        applied::entries(&before, &self.running).into_iter().collect()
    }

    /// Returns the balloon target in bytes; `None` for all memory that the guest was started with.
    pub(crate) fn memory_target(&self) -> Option<u64> {
        let mem = self.running.mem();
        (mem != self.vm().mem).then(|| mem.bytes())
    }

    /// Returns the removals of all disks and NICs of the machine.
    pub(crate) fn removals(&self) -> Vec<LiveChange> {
        let disks = self.disks().into_iter().map(LiveChange::RemoveDisk);
        let nics = self.running.nics().iter().map(|nic| nic.name.clone());
        disks.chain(nics.map(LiveChange::RemoveNic)).collect()
    }

    /// Returns the disks of the machine.
    pub(crate) fn disks(&self) -> Vec<Label> {
        self.running.disks().iter().map(|disk| disk.name.clone()).collect()
    }

    /// Returns the effective I/O limits of the disks.
    pub(crate) fn disk_limits(&self) -> Vec<DiskLimit> {
        let of_disk = |disk: &Disk| {
            let limits = disk.limits.iter().filter_map(|(kind, limit)| {
                Some(DiskLimit {
                    disk: disk.name.to_string(),
                    limit: kind.key.to_owned(),
                    per_second: limit.rate?,
                    burst: limit.burst,
                    burst_sec: limit.burst_sec,
                })
            });
            limits.collect::<Vec<_>>()
        };
        self.running.disks().iter().flat_map(of_disk).collect()
    }

    /// Returns the NICs with a tap.
    pub(crate) fn nic_taps(&self) -> Vec<NicTap> {
        let tap = |nic: &Nic| match &nic.link {
            Link::Bridge { tap, .. } => {
                Some(NicTap { nic: nic.name.to_string(), tap: tap.to_string() })
            }
            Link::User { .. } => None,
        };
        self.running.nics().iter().filter_map(tap).collect()
    }

    /// Returns the wanted state of the taps.
    pub(crate) fn wanted_taps(&self, examining: Examining) -> WantedTaps {
        let taps = tap_spec::taps_of(&self.vm().name, self.running.nics());
        let identity = self.files.identity.as_ref().filter(|_| !taps.is_empty());
        WantedTaps {
            heal: self.vm().tap_heal,
            macs: identity.map(|identity| identity.macs.clone()).unwrap_or_default(),
            taps,
            // The filter depends on the addresses.
            held: examining == Examining::Suspended || !self.files.is_read,
        }
    }

    /// Returns the notes about the networks.
    pub(crate) fn network_notes(&self) -> Vec<Note> {
        user_network::notes(self.running.nics())
    }

    /// Whether devices were plugged in or out since QEMU was started: no new QEMU process could
    /// have the same ports.
    pub(crate) fn is_replugged(&self) -> bool {
        self.running.is_replugged()
    }

    /// Notes that the screen is not served as configured, so that the next `qvm apply` tries again.
    pub(crate) fn set_screen_unserved(&mut self) {
        self.running.is_screen_failed = true;
    }

    /// Restores from the run record the changes that an earlier supervisor applied to the machine.
    pub(crate) fn recall(&mut self, record: &Record) {
        let firmware = record.firmware.as_ref().map(|(path, at)| built(path, *at));
        let (machine, unread) = applied::machine(self.vm(), &record.applied);
        if !unread.is_empty() {
            let unread = unread.join(", ");
            warn!("the run record has changes that this version cannot read: {unread}");
        }
        self.running = machine;
        self.running.versions = Versions {
            qemu: Some(record.qemu_version.clone()),
            firmware,
            instance: record.instance.clone(),
        };
    }

    /// Compares the VM file with the running VM. `qemu` is `None` without a QEMU process.
    pub(crate) fn compare(&mut self, qemu: Option<RunningQemu<'_>>) {
        let screen = match qemu.as_ref().map(|qemu| qemu.screen) {
            Some(ScreenOwner::Qemu) => ScreenServer::Qemu,
            _ if self.running.is_screen_failed => ScreenServer::Failed,
            Some(ScreenOwner::Supervisor) | None => ScreenServer::Supervisor,
        };
        let facts = Facts {
            max_memory: self.vm().mem,
            screen,
            running: &self.running.versions,
            installed: &self.versions_installed(qemu),
        };
        self.diff = VmDiff::between(&self.running.current(), &self.written, &facts);
    }

    /// Returns the versions that a QEMU started now would have.
    fn versions_installed(&self, qemu: Option<RunningQemu<'_>>) -> Versions {
        let Some(RunningQemu { record, installed, .. }) = qemu else { return Versions::default() };
        let running = self.running.versions.clone();
        let firmware = record.firmware.as_ref();
        let firmware = firmware.and_then(|(path, _)| Some(built(path, self.files.firmware?)));
        let seeded = self.written.cloud_init.is_some() && record.instance.is_some();
        let identity = self.files.identity.as_ref().filter(|_| seeded);
        let instance = identity.map(|identity| identity.instance_id.clone());
        Versions {
            qemu: installed.map(str::to_owned).or(running.qemu),
            firmware: firmware.or(running.firmware),
            instance: instance.or(running.instance),
        }
    }
}

/// The properties of a QEMU process that the VM file is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunningQemu<'a> {
    /// Its run record.
    pub(crate) record: &'a Record,
    /// The version of the installed QEMU if it differs.
    pub(crate) installed: Option<&'a str>,
    /// The process that listens for viewers of the screen.
    pub(crate) screen: ScreenOwner,
}

/// The process that listens for viewers of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScreenOwner {
    /// The supervisor.
    Supervisor,
    /// QEMU, started by an earlier version of qvm.
    Qemu,
}

/// Whether the taps are examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Examining {
    Active,
    /// The machine is being changed.
    Suspended,
}

/// Identifies a firmware file by its path and modification time.
fn built(path: &std::path::Path, at: i64) -> String {
    let at = jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |at| at.to_string());
    format!("{} of {at}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::{record, vm};

    const BASE: &str = "mem = \"1G\"\nvcpu = 1\n";

    /// A VM that runs `running`, whose VM file is now `written`.
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
    fn executed_change_is_no_difference() {
        let written = BASE.replace("1G", "512M");
        let mut config = config(BASE, &written);
        keys(&mut config);
        let changes = config.live_changes();
        assert_eq!(changes.len(), 1);
        let done = config.record_change(&changes[0]);
        assert!(!done.is_empty());
        assert_eq!(keys(&mut config), Vec::<String>::new());
        assert_eq!(config.memory_target(), Some(512 << 20));
        // The next supervisor reads the same changes from the run record.
        let mut next = config_of_next(BASE, &written);
        let record = Record { applied: done.into_iter().collect(), ..record() };
        next.recall(&record);
        assert_eq!(next.memory_target(), Some(512 << 20));
        assert!(!next.is_replugged());
    }

    fn config_of_next(running: &str, written: &str) -> Config {
        config(running, written)
    }

    #[test]
    fn plugged_disk_marks_the_machine_replugged() {
        let written = format!("{BASE}[disk.data]\nsize = \"1G\"\n");
        let mut config = config(BASE, &written);
        keys(&mut config);
        let changes = config.live_changes();
        assert!(matches!(changes[..], [LiveChange::AddDisk(_)]), "{changes:?}");
        let done = config.record_change(&changes[0]);
        assert!(config.is_replugged());
        let mut next = config_of_next(BASE, &written);
        next.recall(&Record { applied: done.into_iter().collect(), ..record() });
        assert!(next.is_replugged());
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
        assert_eq!(config(BASE, BASE).network_notes(), []);
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
        let notes: Vec<Note> = config.operator_notes().collect();
        assert!(notes[0].text.contains("nosuchuser-qvm"), "{notes:?}");
        let authorizer = config.authorizer();
        assert_eq!(authorizer.operators.borrow().len(), 2);
    }
}
