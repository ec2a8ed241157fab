//! Whether each isolation layer for QEMU is available on the host.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::Seen,
};
use crate::control::isolation::{Layer, Mode, Word};

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &seen.isolation {
        None => {}
        Some(Err(complaint)) => {
            findings.push(Finding::complaint(
                FindingCode::IsolationUntried,
                Level::Error,
                "isolation",
                complaint,
            ));
        }
        Some(Ok(isolation)) if isolation.missing.is_empty() => {
            let found = format!("all layers are available for QEMU: {}", isolation.describe());
            findings.push(Finding::ok(FindingCode::Isolation, "isolation", found));
        }
        Some(Ok(isolation)) => {
            for missing in &isolation.missing {
                let found = format!("no {}: {}", missing.layer.word(), missing.why);
                let finding =
                    Finding::warning(FindingCode::IsolationLayerMissing, "isolation", found);
                findings.push(match missing.layer {
                    Word::Known(layer) => finding.todo(todo(layer)),
                    Word::Other(_) => finding,
                });
            }
        }
    }
    let off: Vec<_> = seen.written().filter(|vm| vm.isolation == Mode::Off).collect();
    if !off.is_empty() {
        let found = format!(
            "the QEMU of {} has all privileges of its supervisor: `isolation = \"off\"`",
            names(off.iter().map(|vm| &vm.name))
        );
        findings.push(Finding::note(FindingCode::IsolationOff, "isolation", found));
    }
    findings
}

/// Returns how to make the layer available.
fn todo(layer: Layer) -> &'static str {
    match layer {
        Layer::Uid => {
            "run the VMs as root, by system units: an unprivileged QEMU has its user's UID"
        }
        Layer::Network => {
            "allow user namespaces (`user.max_user_namespaces`; on Ubuntu also \
             `kernel.apparmor_restrict_unprivileged_userns=0`)"
        }
        Layer::Landlock => {
            "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and `landlock` in `lsm=`"
        }
        Layer::Seccomp => "use a QEMU with seccomp, such as the one of a distribution",
        Layer::Capabilities | Layer::NoNewPrivileges => {
            "check the restrictions of the container or sandbox of qvm"
        }
    }
}
