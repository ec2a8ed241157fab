//! The VM's share of the host's CPUs and memory, set at launch, adoption and reload.
//!
//! Under systemd, the unit contains the weights and limits (`systemd::unit`), because systemd owns
//! its cgroup.

use tracing::{debug, warn};

use super::{
    event::{HostShareEvent, HostShareGiven, VmEvent},
    qemu::Qemu,
};
use crate::{
    machine::resources::settings,
    spec::Vm,
    supervisor::{context::Context, limits::QMP_LIMIT, settings::Settings},
    sys::{
        affinity,
        cgroup::{self, Cgroup},
        oom_score,
        pidfd::Exit,
    },
    value::{CpuList, Explain, Note, NoteCode, chain},
};

/// Applies the VM file's share of the host. Blocks as long as the kernel does.
pub(crate) fn give(host: &Settings, vm: &Vm, pid: u32, under_systemd: bool) -> HostShareGiven {
    let mut given = HostShareGiven::default();
    if !under_systemd {
        match into_cgroup(host, vm, pid, &mut given.notes) {
            Ok(cgroup) => given.cgroup = Some(cgroup),
            // Without a key in the VM file, a missing cgroup is not reported.
            Err(why) => given.notes.extend(
                settings(vm)
                    .iter()
                    .filter(|setting| setting.wanted)
                    .map(|setting| void(setting.key, &why)),
            ),
        }
    }
    if let Err(error) = offer(host, vm, pid) {
        given.notes.push(void("oomScoreAdjust", &error.to_string()));
    }
    given
}

/// The VM's share of the host. The cgroup is used by all QEMU processes of a run.
#[derive(Debug, Default)]
pub(crate) struct HostShare {
    cgroup: Option<Cgroup>,
    notes: Vec<Note>,
    /// Whether vCPU threads are bound to CPUs, possibly by an earlier supervisor.
    pinned: bool,
}

impl HostShare {
    /// Notes a new QEMU process; the threads of an adopted one may be bound.
    pub(crate) fn on_launched(&mut self, adopted: bool) {
        self.pinned = adopted;
    }

    /// Applies the VM file's share of the host in a task, which ends with a report.
    pub(crate) fn give(
        &self,
        vm: &Vm,
        qemu: &mut Qemu,
        ctx: &Context,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (settings, vm, by) = (ctx.settings().clone(), vm.clone(), ctx.is_under_systemd());
        let pid = qemu.record().pid;
        let given = ctx.lanes().host.ask(move || give(&settings, &vm, pid, by));
        let reports = qemu.tasks().sender();
        async move {
            match given.await {
                Ok(given) => {
                    let given = VmEvent::HostShare(HostShareEvent::Given(given));
                    let _ = reports.send(given).await;
                }
                Err(refused) => warn!("cannot set QEMU's share of the host: {refused}"),
            }
        }
    }

    /// Handles a report: notes the keys without an effect.
    pub(crate) fn handle(&mut self, event: HostShareEvent, vm: &Vm, qemu: &mut Qemu) {
        match event {
            HostShareEvent::Given(given) => {
                for note in &given.notes {
                    warn!("{note}");
                }
                self.cgroup = given.cgroup.or(self.cgroup.take());
                self.notes = given.notes;
                self.pin(vm, qemu);
            }
            HostShareEvent::NotPinned(why) => {
                let note = void("cpu.pin", &why);
                warn!("{note}");
                self.notes.push(note);
            }
        }
    }

    /// Binds the vCPU threads, whose ids are queried from QEMU.
    fn pin(&mut self, vm: &Vm, qemu: &mut Qemu) {
        let lists = vm.cpu_pin.clone();
        // Threads that were never bound are not changed.
        if lists.is_empty() && !self.pinned {
            return;
        }
        self.pinned = !lists.is_empty();
        let (client, reports) = (qemu.client(), qemu.tasks().sender());
        qemu.tasks().spawn(async move {
            let pinned = match client.vcpu_threads(QMP_LIMIT).await {
                Ok(threads) => pin(&threads, &lists),
                Err(error) => Err(chain(&error)),
            };
            match pinned {
                Ok(()) => debug!("vCPUs are pinned as configured"),
                Err(why) => {
                    let failed = VmEvent::HostShare(HostShareEvent::NotPinned(why));
                    let _ = reports.send(failed).await;
                }
            }
        });
    }

    /// Returns a function that determines, and may block, whether the kernel's OOM killer was
    /// active in the VM's cgroup.
    pub(crate) fn was_oom_killed(&self, ctx: &Context) -> impl FnOnce(Exit) -> bool + Send + use<> {
        let proc = ctx.settings().root.join("proc");
        let directory = self.cgroup.as_ref().map(|cgroup| cgroup.directory().to_owned());
        move |exit| {
            let own = || {
                let root = cgroup::root(&proc).ok()?;
                cgroup::of_process(&root, &proc, std::process::id())
            };
            let killed = exit == Exit::Signal(SIGKILL);
            killed
                && directory
                    .or_else(own)
                    .is_some_and(|directory| cgroup::was_oom_killed(&directory))
        }
    }

    /// Returns the cgroup for its removal.
    pub(crate) fn take_cgroup(&mut self) -> Option<Cgroup> {
        self.cgroup.take()
    }

    /// Returns the notes for the status.
    pub(crate) fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// The signal of the OOM killer.
const SIGKILL: i32 = 9;

fn void(key: &str, why: &str) -> Note {
    Note::new(NoteCode::NoEffect, format!("`{key}` has no effect: {why}")).key(key)
}

/// Creates the VM's cgroup with QEMU in it; failed writes of control files are noted.
fn into_cgroup(
    host: &Settings,
    vm: &Vm,
    pid: u32,
    notes: &mut Vec<Note>,
) -> Result<Cgroup, String> {
    let root = cgroup::root(&host.root.join("proc"));
    let cgroup = root.and_then(|root| Cgroup::make(&root, &host.name));
    let describe = |error: &cgroup::Error| match error.hint() {
        Some(hint) => format!("{} ({hint})", chain(error)),
        None => chain(error),
    };
    let cgroup = cgroup.map_err(|error| describe(&error))?;
    for setting in settings(vm) {
        match cgroup.set(&setting) {
            Err(error) if setting.wanted => notes.push(void(setting.key, &describe(&error))),
            Ok(()) | Err(_) => {}
        }
    }
    cgroup.add_process(pid).map_err(|error| describe(&error))?;
    Ok(cgroup)
}

/// Sets `oom_score_adj` of QEMU; without the key it is the supervisor's.
fn offer(host: &Settings, vm: &Vm, pid: u32) -> std::io::Result<()> {
    let proc = host.root.join("proc");
    let adjust = match vm.oom_score_adjust {
        Some(adjust) => adjust,
        None => oom_score::get(&proc, "self")?,
    };
    oom_score::set(&proc, pid, adjust)
}

/// Binds each thread to its list; a single list applies to all, no list removes the binding.
fn pin(threads: &[u32], lists: &[CpuList]) -> Result<(), String> {
    for (vcpu, thread) in threads.iter().enumerate() {
        let done = match lists.get(vcpu).or(lists.first()) {
            Some(list) => affinity::pin(*thread, list.iter()).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidInput => {
                    format!("this host has no CPU of `{list}` for vCPU {vcpu}")
                }
                _ => format!("vCPU {vcpu}: {error}"),
            }),
            None => affinity::free(*thread).map_err(|error| format!("vCPU {vcpu}: {error}")),
        };
        done?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host, vm};

    const BASE: &str = "vcpu = 1\n";

    fn given(notes: &[&str]) -> HostShareEvent {
        let notes = notes.iter().map(|key| void(key, "of a test")).collect();
        HostShareEvent::Given(HostShareGiven { cgroup: None, notes })
    }

    #[tokio::test]
    async fn unavailable_resources_are_noted() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut share = HostShare::default();
        share.handle(given(&["a"]), &vm(BASE), &mut fake.qemu);
        assert!(share.notes()[0].is_of(NoteCode::NoEffect, "a"));
        share.handle(given(&[]), &vm(BASE), &mut fake.qemu);
        assert!(share.notes().is_empty() && share.take_cgroup().is_none());
        // No list of CPUs.
        assert_eq!(fake.peer.commands.names(), ["qmp_capabilities"]);
    }

    #[tokio::test]
    async fn vcpus_that_qemu_does_not_list_are_not_pinned() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-cpus-fast", Answer::Refuse("no"));
        let vm = vm(&format!("{BASE}[cpu]\npin = [\"0\"]\n"));
        let mut share = HostShare::default();
        share.handle(given(&[]), &vm, &mut fake.qemu);
        let VmEvent::HostShare(event) = fake.event().await else { panic!() };
        share.handle(event, &vm, &mut fake.qemu);
        assert!(share.notes()[0].is_of(NoteCode::NoEffect, "cpu.pin"), "{:?}", share.notes());
    }

    #[tokio::test]
    async fn threads_of_an_adopted_qemu_are_freed() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        fake.peer.script.on("query-cpus-fast", Answer::Return(json!([])));
        let mut share = HostShare::default();
        share.on_launched(true);
        share.handle(given(&[]), &vm(BASE), &mut fake.qemu);
        fake.peer.commands.until("query-cpus-fast").await;
        assert!(!share.pinned);
    }

    #[tokio::test]
    async fn failed_host_share_is_reported() {
        // A temporary directory has neither /proc nor a cgroup.
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let share = HostShare::default();
        let vm = vm(&format!("{BASE}cpuWeight = 300\n"));
        share.give(&vm, &mut fake.qemu, &host.ctx).await;
        let VmEvent::HostShare(HostShareEvent::Given(given)) = fake.event().await else { panic!() };
        assert!(given.cgroup.is_none());
        let notes = given.notes;
        for key in ["cpuWeight", "oomScoreAdjust"] {
            assert!(notes.iter().any(|note| note.is_of(NoteCode::NoEffect, key)), "{notes:?}");
        }
    }

    #[tokio::test]
    async fn only_sigkill_can_be_the_oom_killers() {
        let host = Host::new();
        for exit in [Exit::Code(1), Exit::Signal(15), Exit::Unknown] {
            assert!(!HostShare::default().was_oom_killed(&host.ctx)(exit), "{exit:?}");
        }
    }

    #[test]
    fn thread_without_a_cpu_of_its_list_is_named() {
        let list: CpuList = "1023".parse().unwrap();
        let me = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let why = pin(&[me], &[list]).unwrap_err();
        assert!(why.contains("vCPU 0"), "{why}");
        assert_eq!(pin(&[], &[]), Ok(()));
    }
}
