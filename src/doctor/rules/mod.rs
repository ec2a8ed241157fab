//! The rules of `qvm doctor`: findings from the results of the probes.
//!
//! One file for each subject, without any I/O.

pub(crate) mod anti_spoof;
pub(crate) mod cgroup;
pub(crate) mod claims;
mod code;
mod finding;
pub(crate) mod firewall;
pub(crate) mod headroom;
pub(crate) mod isolation;
pub(crate) mod kvm;
pub(crate) mod network;
pub(crate) mod qemu;
mod seen;
#[cfg(test)]
mod tests;
pub(crate) mod unit;

pub use self::code::FindingCode;
pub use self::finding::{Complaint, Finding, Level};
pub use self::firewall::{iptables, nft};
pub use self::seen::{
    Bridge, BridgePort, DiskSeen, DiskSpace, Firewall, ForwardChain, Interface, KvmSeen, Module,
    NEEDED, Netfilter, Network, QemuSeen, Seen, Unit, VmSeen,
};
pub use self::unit::units;
pub use crate::sys::cgroup::Cgroups;

use self::finding::one_line;
use crate::spec::Problem;

/// Returns all findings, in a fixed order.
pub fn examine(seen: &Seen) -> Vec<Finding> {
    let subjects: [fn(&Seen) -> Vec<Finding>; 12] = [
        kvm::examine,
        cgroup::examine,
        qemu::examine,
        isolation::examine,
        network::examine,
        anti_spoof::examine,
        firewall::examine,
        headroom::examine,
        unit::examine,
        claims::examine,
        unknown,
        files,
    ];
    subjects.iter().flat_map(|examine| examine(seen)).collect()
}

/// VMs of unknown state.
fn unknown(seen: &Seen) -> Vec<Finding> {
    let unknown = seen.vms.iter().filter_map(|vm| Some((vm, vm.unknown.as_ref()?)));
    unknown
        .map(|(vm, why)| {
            Finding::complaint(FindingCode::Unknown, Level::Error, vm.name.as_str(), why)
        })
        .collect()
}

/// Invalid VM files.
fn files(seen: &Seen) -> Vec<Finding> {
    if seen.problems.is_empty() {
        let found = match seen.written().count() {
            0 => "no VM file".to_owned(),
            1 => "one, valid".to_owned(),
            count => format!("all {count} are valid"),
        };
        return vec![Finding::ok(FindingCode::VmFiles, "VM files", found)];
    }
    let finding = |problem: &Problem| {
        let about = problem.file.file_stem().unwrap_or(problem.file.as_os_str());
        let line = problem.line.map_or_else(String::new, |line| format!(":{line}"));
        let key = problem.key.as_ref().map_or_else(String::new, |key| format!("{key}: "));
        let found = format!("{key}{} ({}{line})", problem.message, problem.file.display());
        Finding::error(FindingCode::VmFileInvalid, one_line(&about.to_string_lossy()), found)
            .maybe_todo(problem.hint.as_deref())
    };
    seen.problems.iter().map(finding).collect()
}
