//! KVM: whether guests can use it, and through which module.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::Seen,
};
use crate::{control::isolation::Mode, machine::facts::Kvm, spec::Accel, value::VmName};

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let kvm = &seen.kvm;
    let with = |wish: Accel| -> Vec<&VmName> {
        seen.written().filter(|vm| vm.accel == wish).map(|vm| &vm.name).collect()
    };
    let (demand, automatic) = (with(Accel::Kvm), with(Accel::Auto));
    let level = match (demand.is_empty(), automatic.is_empty()) {
        (false, _) => Level::Error,
        (true, false) => Level::Warning,
        (true, true) => Level::Note,
    };
    let refused = match demand.as_slice() {
        [] => "guests run on TCG, an order of magnitude slower".to_owned(),
        demand => format!("{} cannot start: `accel` is `kvm`", names(demand.iter().copied())),
    };
    let others: Vec<&VmName> = seen
        .written()
        .filter(|vm| vm.accel != Accel::Tcg && vm.isolation != Mode::Off)
        .map(|vm| &vm.name)
        .collect();
    let finding = match kvm.usable {
        Kvm::Usable if kvm.only_root && !others.is_empty() => {
            let found = format!(
                "only root can open /dev/kvm, but QEMU has another user: {} cannot start",
                names(others)
            );
            Finding::error(FindingCode::KvmRootOnly, "kvm", found).todo(
                "run `chgrp kvm /dev/kvm && chmod 0660 /dev/kvm`, as udev does: QEMU keeps the \
                 group `kvm`, but not `root`",
            )
        }
        Kvm::Usable => {
            let module = kvm.module.as_deref().unwrap_or("an unknown module");
            let nested = if kvm.nested { "on" } else { "off" };
            let found =
                format!("/dev/kvm is usable, by `{module}`; nested virtualization is {nested}");
            return vec![Finding::ok(FindingCode::Kvm, "kvm", found)];
        }
        Kvm::Missing if kvm.offered => {
            let found =
                format!("/dev/kvm is missing, but the processor has virtualization: {refused}");
            Finding::new(FindingCode::KvmMissing, level, "kvm", found)
                .todo("run `modprobe kvm_intel` or `modprobe kvm_amd`, and check the kernel log")
        }
        Kvm::Missing => {
            let found =
                format!("/dev/kvm is missing, and the processor has no virtualization: {refused}");
            Finding::new(FindingCode::KvmNotOffered, level, "kvm", found).todo(
                "enable virtualization in the firmware setup; if this host is a VM, enable nested \
                 virtualization on its host",
            )
        }
        Kvm::Denied => {
            let found = format!("this user cannot open /dev/kvm: {refused}");
            Finding::new(FindingCode::KvmDenied, level, "kvm", found)
                .todo("add the user to the group of the device (`ls -l /dev/kvm`, usually `kvm`)")
        }
        Kvm::Unproven => {
            let hang = match demand.as_slice() {
                [] => "with `accel = \"auto\"` they run on TCG instead".to_owned(),
                demand => {
                    format!("{} may hang: `accel` is `kvm`", names(demand.iter().copied()))
                }
            };
            let found = format!(
                "/dev/kvm exists without `kvm_intel` or `kvm_amd`, and guests may hang: {hang}"
            );
            Finding::new(FindingCode::KvmUnproven, level.min(Level::Warning), "kvm", found)
                .todo("find the creator of /dev/kvm, or set `accel = \"tcg\"`")
        }
    };
    vec![finding]
}
