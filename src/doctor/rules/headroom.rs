//! Whether disk space and memory suffice for what guests may use.

use super::{
    code::FindingCode,
    finding::Finding,
    seen::{Room, Seen},
};
use crate::{
    spec::Admission,
    supervisor::start::memory_budget::{bytes, commitment},
};

/// The least free disk space, in bytes: a guest whose write fails with ENOSPC is paused, or worse.
const LEAST_FREE: u64 = 1 << 30;
/// The least free disk space, in percent of the file system.
const LEAST_PERCENT: u64 = 2;

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = memory(seen).into_iter().collect();
    if let Some(room) = &seen.room {
        findings.extend(disks(seen, room));
    }
    findings
}

/// Uses the sums of the admission of starts.
fn memory(seen: &Seen) -> Option<Finding> {
    let memory = seen.memory?;
    let running = seen.vms.iter().filter(|vm| vm.runs);
    let running = running.filter_map(|vm| vm.booted.as_ref().or(vm.written.as_ref()));
    let now = sum(running.map(|vm| commitment(vm.mem.bytes())));
    let starting = seen.vms.iter().filter(|vm| !vm.runs).filter_map(|vm| vm.written.as_ref());
    let starting = starting.filter(|vm| vm.autostart);
    let then = now.saturating_add(sum(starting.map(|vm| commitment(vm.mem.bytes()))));
    let told = format!(
        "of {}, VMs can have {}; those that run may take {}, and with `autostart` {}",
        bytes(memory.total),
        bytes(memory.for_vms()),
        bytes(now),
        bytes(then)
    );
    let end = match seen.admission {
        Admission::Refuse => "the last to start will be refused",
        Admission::Wait => "the last to start will wait",
        Admission::Off => "nobody keeps them from it, with `admission = \"off\"`",
    };
    let todo = "give guests less `mem`, or have fewer of them; swap and the balloon carry a short while only";
    Some(if now > memory.for_vms() {
        Finding::warning(
            FindingCode::MemoryOvercommitted,
            "memory",
            format!("{told}: more than there is"),
        )
        .todo(todo)
    } else if then > memory.for_vms() {
        let found = format!("{told}: more than there is when the host has started, {end}");
        Finding::warning(FindingCode::MemoryOvercommitted, "memory", found).todo(todo)
    } else {
        Finding::ok(FindingCode::Memory, "memory", told)
    })
}

fn disks(seen: &Seen, room: &Room) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Room { at, free, total } = room;
    // Rounded up, because 2 % of a small file system may be less than one unit.
    let percent = |of: u64| of.saturating_mul(100).div_ceil((*total).max(1));
    let few = *free < LEAST_FREE
        || u128::from(*free) * 100 < u128::from(*total) * u128::from(LEAST_PERCENT);
    if few {
        let found =
            format!("`{at}` has {} left of {} ({} %)", bytes(*free), bytes(*total), percent(*free));
        let todo = "make room: `qvm image prune` removes images that no VM needs, `qvm gc` what is left of VMs";
        findings.push(Finding::error(FindingCode::DiskSpaceLow, "disk", found).todo(todo));
    }
    let all = || seen.vms.iter().flat_map(|vm| &vm.disks);
    let promised = sum(all().map(|disk| disk.virtual_size));
    let growth = sum(all().map(|disk| disk.virtual_size.saturating_sub(disk.allocated)));
    let told = format!(
        "disks in `{at}` may grow by {} to {}, and {} is free",
        bytes(growth),
        bytes(promised),
        bytes(*free)
    );
    if growth > *free {
        let ratio = u128::from(growth) * 100 / u128::from((*free).max(1));
        let found = format!("{told}: over-committed, {ratio} % of what is free is promised");
        let todo = "watch it, or make room; where guests trim (`fstrim.timer`), disks shrink by themselves";
        findings.push(Finding::warning(FindingCode::DiskOvercommitted, "disk", found).todo(todo));
    } else if !few {
        findings.push(Finding::ok(FindingCode::DiskSpace, "disk", told));
    }
    findings
}

/// The size in a disk's header may be any number.
fn sum(all: impl Iterator<Item = u64>) -> u64 {
    all.fold(0, u64::saturating_add)
}
