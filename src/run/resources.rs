//! What the VM gets of the host's CPUs and memory: given to QEMU at its start, when it is taken over, and at each reload.
//!
//! Under systemd the unit has the weights and limits (`plan::unit`), for systemd owns its cgroup. The rest is the same everywhere.

use tracing::{debug, warn};

use super::{
    Settings,
    fact::Fact,
    supervise::{QMP_LIMIT, Supervisor},
};
use crate::{
    host::{
        affinity,
        cgroup::{self, Cgroup},
        oom_score,
    },
    plan::resources::settings,
    spec::Vm,
    value::{CpuList, chain},
};

impl Supervisor {
    /// Gives QEMU what the VM file says. What cannot be given is noted, and the guest runs on without.
    pub(super) fn give_resources(&mut self) {
        let Some(qemu) = &self.qemu else { return };
        let pid = qemu.record.pid;
        let mut notes = Vec::new();
        if !self.under_systemd {
            match into_cgroup(&self.settings, &self.vm, pid, &mut notes) {
                Ok(cgroup) => self.cgroup = Some(cgroup),
                // Nobody asked for anything, so nobody need hear that there is none.
                Err(why) => notes.extend(
                    settings(&self.vm)
                        .iter()
                        .filter(|setting| setting.wanted)
                        .map(|setting| void(setting.key, &why)),
                ),
            }
        }
        if let Err(error) = offer(&self.settings, &self.vm, pid) {
            notes.push(void("oomScoreAdjust", &error.to_string()));
        }
        for note in &notes {
            warn!("{note}");
        }
        self.resource_notes = notes;
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
        tokio::spawn(async move {
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
    pub(super) fn not_pinned(&mut self, why: &str) {
        let note = void("cpu.pin", why);
        warn!("{note}");
        self.resource_notes.push(note);
    }

    /// Whether the kernel's OOM killer was at work in the VM's cgroup.
    pub(super) fn was_oom_killed(&self, signal: i32) -> bool {
        const SIGKILL: i32 = 9;
        let proc = self.settings.root.join("proc");
        let own = || {
            let root = cgroup::root(&proc).ok()?;
            cgroup::of_process(&root, &proc, std::process::id())
        };
        let directory = self.cgroup.as_ref().map(|c| c.directory().to_owned()).or_else(own);
        signal == SIGKILL && directory.is_some_and(|directory| cgroup::was_oom_killed(&directory))
    }
}

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
