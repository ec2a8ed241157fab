//! QEMU: known faults of its version, its machine types, firmware, qemu-img.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::{QemuSeen, Seen, VmSeen},
};
use crate::{
    machine::facts::{Qemu, Version},
    spec::{Bus, Vm},
    value::VmName,
};

/// A fault of released versions that can affect a VM of qvm.
struct Fault {
    /// The effect.
    what: &'static str,
    /// The affected VMs.
    affects: fn(&Vm) -> bool,
    /// The first fixed release of each series. Series between these are affected.
    fixed: &'static [Version],
    /// The source.
    source: &'static str,
}

/// Only faults with a source. Distributions also fix older versions without a change of the version
/// number.
const FAULTS: [Fault; 2] = [
    // Fixed by 7d7512019fc4: round-up of 7.2.7 (qemu-stable, 2023-11-09), announcement of 8.1.3
    // (2023-11-21).
    Fault {
        what: "a guest that resets its SATA controller during a transfer can overwrite the \
               disk's first sector",
        affects: |vm| vm.disks.iter().any(|disk| disk.bus == Bus::Sata),
        fixed: &[version(7, 2, 7), version(8, 1, 3), version(8, 2, 0)],
        source: "CVE-2023-5088",
    },
    // Fixed by b4295bff25f7: round-ups of 7.2.11 and 8.2.3 (qemu-stable, 2024-04-18).
    Fault {
        what: "a malicious guest can crash its QEMU, or run code in it, by virtio-serial",
        affects: |_| true,
        fixed: &[version(7, 2, 11), version(8, 2, 3), version(9, 0, 0)],
        source: "CVE-2024-3446",
    },
];

const fn version(major: u16, minor: u16, micro: u16) -> Version {
    Version { major, minor, micro }
}

impl Fault {
    fn is_in(&self, version: Version) -> bool {
        let series = |v: &Version| (v.major, v.minor);
        let fixed = self.fixed.iter().find(|fixed| series(fixed) == series(&version));
        match (fixed, self.fixed.iter().max()) {
            (Some(fixed), _) => version < *fixed,
            (None, Some(newest)) => version < *newest,
            (None, None) => true,
        }
    }
}

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &seen.qemu {
        Ok(qemu) => findings.extend(with(seen, qemu)),
        Err(complaint) => {
            findings.push(Finding::complaint(
                FindingCode::QemuUnusable,
                Level::Error,
                "qemu",
                complaint,
            ));
        }
    }
    if !seen.qemu_img {
        let found = "not found beside QEMU or on PATH: disks cannot be created, grown or checked";
        let todo = "install qemu-img (Debian: qemu-utils, Fedora: qemu-img, NixOS: qemu)";
        findings.push(Finding::error(FindingCode::NoQemuImg, "qemu-img", found).todo(todo));
    }
    for vm in &seen.vms {
        let complaints = [vm.identity.as_ref().err(), vm.firmware.as_ref().err()];
        findings.extend(complaints.into_iter().flatten().map(|complaint| {
            Finding::complaint(
                FindingCode::VmCannotStart,
                Level::Error,
                vm.name.as_str(),
                complaint,
            )
        }));
    }
    findings
}

fn with(seen: &Seen, qemu: &QemuSeen) -> Vec<Finding> {
    let Qemu { binary, version, machine, .. } = &qemu.qemu;
    let found = format!("`{}` is QEMU {version}; new VMs get `{machine}`", binary.display());
    let mut findings = vec![Finding::ok(FindingCode::Qemu, "qemu", found)];
    for fault in FAULTS.iter().filter(|fault| fault.is_in(*version)) {
        let affected: Vec<&VmName> =
            seen.written().filter(|vm| (fault.affects)(vm)).map(|vm| &vm.name).collect();
        if affected.is_empty() {
            continue;
        }
        let source = fault.source;
        let found = format!(
            "QEMU {version}: {} ({source}); affects {}",
            fault.what,
            names(affected.iter().copied())
        );
        let fixed: Vec<String> = fault.fixed.iter().map(ToString::to_string).collect();
        let todo = format!(
            "upgrade QEMU: fixed in {}, and in packages whose changelog names {source}",
            fixed.join(", ")
        );
        findings.push(Finding::warning(FindingCode::QemuFault, "qemu", found).todo(todo));
    }
    findings.extend(seen.vms.iter().filter_map(|vm| pinned(vm, qemu)));
    findings
}

/// Checks the machine type of a VM's identity.
fn pinned(vm: &VmSeen, seen: &QemuSeen) -> Option<Finding> {
    let pinned = &vm.identity.as_ref().ok()?.as_ref()?.machine;
    let Qemu { version, machine, .. } = &seen.qemu;
    if seen.machines.is_empty() {
        return None;
    }
    let edit = format!(
        "replace it by `{machine}` in the VM's identity.toml, which changes the guest's hardware"
    );
    match seen.machines.iter().find(|machine| machine.name == *pinned) {
        None if seen.qemu.is_older_than(pinned) => {
            let found = format!(
                "created with a later QEMU: QEMU {version} does not support its machine type \
                 `{pinned}`"
            );
            let todo = format!("install that QEMU or a later one (`QVM_QEMU`), or {edit}");
            Some(Finding::error(FindingCode::MachineTypeTooNew, vm.name.as_str(), found).todo(todo))
        }
        None => {
            let found = format!("QEMU {version} has removed its machine type `{pinned}`");
            let todo = format!("run a QEMU that supports it (`QVM_QEMU`), or {edit}");
            Some(Finding::error(FindingCode::MachineTypeGone, vm.name.as_str(), found).todo(todo))
        }
        Some(known) if known.deprecated => {
            let found = format!("a later QEMU will not support its machine type `{pinned}`");
            Some(
                Finding::note(FindingCode::MachineTypeDeprecated, vm.name.as_str(), found)
                    .todo(format!("before that, {edit}")),
            )
        }
        Some(_) => None,
    }
}
