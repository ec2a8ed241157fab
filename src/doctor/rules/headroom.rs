//! Whether disk space and memory suffice for what guests may use.

use super::{
    code::FindingCode,
    finding::Finding,
    seen::{DiskSpace, Seen},
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
    if let Some(space) = &seen.disk_space {
        findings.extend(disks(seen, space));
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
    let usage = format!(
        "VMs may use {} of {}; running VMs may use {}, {} with those of `autostart`",
        bytes(memory.for_vms()),
        bytes(memory.total),
        bytes(now),
        bytes(then)
    );
    let end = match seen.admission {
        Admission::Refuse => "the last to start will be refused",
        Admission::Wait => "the last to start will wait",
        Admission::Off => "all will be started, because of `admission = \"off\"`",
    };
    let todo = "reduce `mem` or the number of VMs; swap and the balloon help only for short times";
    Some(if now > memory.for_vms() {
        Finding::warning(
            FindingCode::MemoryOvercommitted,
            "memory",
            format!("{usage}: not enough memory"),
        )
        .todo(todo)
    } else if then > memory.for_vms() {
        let found = format!("{usage}: not enough memory after a boot, {end}");
        Finding::warning(FindingCode::MemoryOvercommitted, "memory", found).todo(todo)
    } else {
        Finding::ok(FindingCode::Memory, "memory", usage)
    })
}

fn disks(seen: &Seen, space: &DiskSpace) -> Vec<Finding> {
    let mut findings = Vec::new();
    let DiskSpace { at, free, total } = space;
    // Rounded up, because 2 % of a small file system may be less than one unit.
    let percent = |of: u64| of.saturating_mul(100).div_ceil((*total).max(1));
    let few = *free < LEAST_FREE
        || u128::from(*free) * 100 < u128::from(*total) * u128::from(LEAST_PERCENT);
    if few {
        let found =
            format!("`{at}` has {} of {} free ({} %)", bytes(*free), bytes(*total), percent(*free));
        let todo = "free space: `qvm image prune` removes unused images, `qvm gc` removes orphans";
        findings.push(Finding::error(FindingCode::DiskSpaceLow, "disk", found).todo(todo));
    }
    let all = || seen.vms.iter().flat_map(|vm| &vm.disks);
    let maximum = sum(all().map(|disk| disk.virtual_size));
    let growth = sum(all().map(|disk| disk.virtual_size.saturating_sub(disk.allocated)));
    let usage = format!(
        "disks in `{at}` may grow by {} to {}, and {} is free",
        bytes(growth),
        bytes(maximum),
        bytes(*free)
    );
    if growth > *free {
        let ratio = u128::from(growth) * 100 / u128::from((*free).max(1));
        let found = format!("{usage}: overcommitted by {ratio} % of the free space");
        let todo = "monitor or free space; trim in the guests (`fstrim.timer`) shrinks disks";
        findings.push(Finding::warning(FindingCode::DiskOvercommitted, "disk", found).todo(todo));
    } else if !few {
        findings.push(Finding::ok(FindingCode::DiskSpace, "disk", usage));
    }
    findings
}

/// Saturates, because the size in a disk's header may be any number.
fn sum(all: impl Iterator<Item = u64>) -> u64 {
    all.fold(0, u64::saturating_add)
}
