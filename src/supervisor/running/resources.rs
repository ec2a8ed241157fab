//! What the VM gets of the host's CPUs and memory: given to QEMU at its start, when it is taken over, and at each reload.
//!
//! Under systemd the unit has the weights and limits (`systemd::unit`), for systemd owns its cgroup. The rest is the same everywhere.

use crate::supervisor::limits::QMP_LIMIT;
use tracing::{debug, warn};

use crate::supervisor::{Supervisor, input::Fact, settings::Settings};
use crate::{
    machine::resources::settings,
    spec::Vm,
    sys::{
        affinity,
        cgroup::{self, Cgroup},
        oom_score,
        pidfd::Exit,
    },
    value::{CpuList, chain},
};

/// What QEMU was given, and what could not be.
#[derive(Debug, Default)]
pub(crate) struct Given {
    cgroup: Option<Cgroup>,
    notes: Vec<String>,
}

/// Gives QEMU what the VM file says of the host. Blocks for as long as the kernel does.
pub(crate) fn give(host: &Settings, vm: &Vm, pid: u32, under_systemd: bool) -> Given {
    let mut given = Given::default();
    if !under_systemd {
        match into_cgroup(host, vm, pid, &mut given.notes) {
            Ok(cgroup) => given.cgroup = Some(cgroup),
            // Nobody asked for anything, so nobody need hear that there is none.
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

impl Supervisor {
    /// Gives QEMU what the VM file says, beside the loop; complete when the loop has been told.
    pub(crate) fn give_resources(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let pid = self.qemu.as_ref().map(|qemu| qemu.record.pid);
        let given = pid.map(|pid| {
            let (settings, vm, by) = (self.settings.clone(), self.vm.clone(), self.under_systemd);
            self.lanes.host.ask(move || give(&settings, &vm, pid, by))
        });
        let (facts, generation) = (self.facts.clone(), self.generation);
        async move {
            let Some(given) = given else { return };
            match given.await {
                Ok(given) => drop(facts.send(Fact::Given(generation, given)).await),
                Err(refused) => warn!("QEMU is not given its share of the host: {refused}"),
            }
        }
    }

    /// What cannot be given is noted, and the guest runs on without.
    pub(crate) fn given(&mut self, given: Given) {
        for note in &given.notes {
            warn!("{note}");
        }
        self.cgroup = given.cgroup.or(self.cgroup.take());
        self.resource_notes = given.notes;
        self.pin();
    }

    /// Binds the vCPUs' threads, which QEMU has to be asked for.
    fn pin(&mut self) {
        let lists = self.vm.cpu_pin.clone();
        let Some(qemu) = &self.qemu else { return };
        // A QEMU that was never pinned is not asked.
        if lists.is_empty() && !self.pinned {
            return;
        }
        self.pinned = !lists.is_empty();
        let (client, facts, generation) =
            (qemu.client.clone(), self.facts.clone(), self.generation);
        self.tasks.spawn(async move {
            let pinned = match client.vcpu_threads(QMP_LIMIT).await {
                Ok(threads) => pin(&threads, &lists),
                Err(error) => Err(chain(&error)),
            };
            match pinned {
                Ok(()) => debug!("vCPUs are pinned as the VM file says"),
                Err(why) => {
                    let _ = facts.send(Fact::NotPinned(generation, why)).await;
                }
            }
        });
    }

    /// The vCPUs' threads run where they like.
    pub(crate) fn not_pinned(&mut self, why: &str) {
        let note = void("cpu.pin", why);
        warn!("{note}");
        self.resource_notes.push(note);
    }

    /// Finds out whether the kernel's OOM killer was at work in the VM's cgroup, beside the loop.
    pub(crate) fn was_oom_killed(&self) -> impl FnOnce(Exit) -> bool + Send + use<> {
        let proc = self.settings.root.join("proc");
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
}

/// The signal of the OOM killer.
const SIGKILL: i32 = 9;

fn void(key: &str, why: &str) -> String {
    format!("`{key}` has no effect: {why}")
}

/// Makes the VM's cgroup, with QEMU in it; what a control file does not take is noted.
fn into_cgroup(
    host: &Settings,
    vm: &Vm,
    pid: u32,
    notes: &mut Vec<String>,
) -> Result<Cgroup, String> {
    let root = cgroup::root(&host.root.join("proc"));
    let cgroup = root.and_then(|root| Cgroup::make(&root, &host.name));
    let said = |error: &cgroup::Error| match error.hint() {
        Some(hint) => format!("{} ({hint})", chain(error)),
        None => chain(error),
    };
    let cgroup = cgroup.map_err(|error| said(&error))?;
    for setting in settings(vm) {
        match cgroup.set(&setting) {
            Err(error) if setting.wanted => notes.push(void(setting.key, &said(&error))),
            Ok(()) | Err(_) => {}
        }
    }
    cgroup.take_in(pid).map_err(|error| said(&error))?;
    Ok(cgroup)
}

/// Sets QEMU's score; without the key it is the supervisor's own, which QEMU began with.
fn offer(host: &Settings, vm: &Vm, pid: u32) -> std::io::Result<()> {
    let proc = host.root.join("proc");
    let adjust = match vm.oom_score_adjust {
        Some(adjust) => adjust,
        None => oom_score::get(&proc, "self")?,
    };
    oom_score::set(&proc, pid, adjust)
}

/// Each thread by its list; one list is for all, and none frees them.
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
