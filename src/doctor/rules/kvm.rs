//! KVM: whether guests can use it, and through which module.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::Seen,
};
use crate::{control::isolation::Mode, machine::facts::Kvm, spec::Accel, value::VmName};

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let kvm = &seen.kvm;
    let wish = |wish: Accel| -> Vec<&VmName> {
        seen.written().filter(|vm| vm.accel == wish).map(|vm| &vm.name).collect()
    };
    let (demand, automatic) = (wish(Accel::Kvm), wish(Accel::Auto));
    let level = match (demand.is_empty(), automatic.is_empty()) {
        (false, _) => Level::Error,
        (true, false) => Level::Warning,
        (true, true) => Level::Note,
    };
    let refused = match demand.as_slice() {
        [] => "guests run on TCG, an order of magnitude slower".to_owned(),
        demand => format!("{} will not start: `accel` is `kvm`", names(demand.iter().copied())),
    };
    let others: Vec<&VmName> = seen
        .written()
        .filter(|vm| vm.accel != Accel::Tcg && vm.isolation != Mode::Off)
        .map(|vm| &vm.name)
        .collect();
    let finding = match kvm.usable {
        Kvm::Usable if kvm.roots_alone && !others.is_empty() => {
            let found = format!(
                "/dev/kvm is open to root alone, and QEMU is another user: {} will not start",
                names(others)
            );
            Finding::error(FindingCode::KvmRootOnly, "kvm", found).todo(
                "`chgrp kvm /dev/kvm && chmod 0660 /dev/kvm`, as udev does by itself; QEMU keeps that group, but never root's",
            )
        }
        Kvm::Usable => {
            let module = kvm.module.as_deref().unwrap_or("a module that is not known");
            let nested = if kvm.nested { "may" } else { "may not" };
            let found = format!(
                "/dev/kvm can be opened, of `{module}`; guests {nested} be hypervisors themselves"
            );
            return vec![Finding::ok(FindingCode::Kvm, "kvm", found)];
        }
        Kvm::Missing if kvm.offered => Finding::new(FindingCode::KvmMissing,
            level,
            "kvm",
            format!("there is no /dev/kvm, though the processor has virtualisation: {refused}"),
        )
        .todo("`modprobe kvm_intel` or `modprobe kvm_amd`, and see what the kernel's log says to it"),
        Kvm::Missing => Finding::new(FindingCode::KvmNotOffered,
            level,
            "kvm",
            format!("there is no /dev/kvm, and the processor offers no virtualisation: {refused}"),
        )
        .todo(
            "turn virtualisation on in the firmware setup; where this host is a VM itself, turn nested virtualisation on in \
             its own host",
        ),
        Kvm::Denied => {
            Finding::new(FindingCode::KvmDenied, level, "kvm", format!("/dev/kvm may not be opened by this user: {refused}"))
                .todo("add the user to the group that owns it (`ls -l /dev/kvm`, mostly `kvm`)")
        }
        Kvm::Unproven => {
            let hang = match demand.as_slice() {
                [] => "with `accel = \"auto\"` they run on TCG instead".to_owned(),
                demand => {
                    format!("{} may hang: `accel` is `kvm`", names(demand.iter().copied()))
                }
            };
            let found = format!(
                "/dev/kvm is there without `kvm_intel` or `kvm_amd`, and guests may hang on it: {hang}"
            );
            Finding::new(FindingCode::KvmUnproven, level.min(Level::Warning), "kvm", found)
                .todo("see who made /dev/kvm; `accel = \"tcg\"` says that TCG is meant")
        }
    };
    vec![finding]
}
