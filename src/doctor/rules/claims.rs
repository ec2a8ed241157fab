//! Addresses and identities of two VMs that conflict, in their identities and running QEMUs.
//! Conflicts between VM files are found by `qvm check`.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    code::FindingCode,
    finding::{Finding, names},
    seen::{Seen, VmSeen},
};
use crate::{
    spec::Vm,
    value::{MacAddr, VmName},
};

/// A value that must be unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim<'a> {
    Mac(MacAddr),
    Address(IpAddr),
    Uuid(&'a str),
    User(u32),
}

/// The source of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// The current VM file.
    File,
    /// Its identity.toml.
    Identity,
    /// The running QEMU process.
    Running,
}

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let mut claims: BTreeMap<Claim<'_>, Vec<(&VmName, By)>> = BTreeMap::new();
    for vm in &seen.vms {
        for (claim, by) in of(vm) {
            claims.entry(claim).or_default().push((&vm.name, by));
        }
    }
    claims.into_iter().filter_map(|(claim, who)| conflict(claim, &who)).collect()
}

/// Returns all claims of a VM.
fn of(vm: &VmSeen) -> Vec<(Claim<'_>, By)> {
    let identity = vm.identity.as_ref().ok().and_then(Option::as_ref);
    let mut claims = Vec::new();
    let mut add = |file: &Vm, by: By| {
        for nic in &file.nics {
            let kept = || identity.and_then(|identity| identity.macs.get(&nic.name).copied());
            let mac = match nic.mac {
                Some(mac) => Some((mac, by)),
                None => kept().map(|mac| (mac, By::Identity)),
            };
            claims.extend(mac.map(|(mac, by)| (Claim::Mac(mac), by)));
            claims.extend(nic.ip.map(|ip| (Claim::Address(ip.address()), by)));
        }
    };
    if let Some(written) = &vm.written {
        add(written, By::File);
    }
    if let Some(booted) = vm.booted.as_ref().filter(|_| vm.runs) {
        add(booted, By::Running);
    }
    claims.extend(identity.map(|identity| (Claim::Uuid(&identity.uuid), By::Identity)));
    claims.extend(identity.and_then(|kept| Some((Claim::User(kept.uid?), By::Identity))));
    claims.extend(vm.user.map(|uid| (Claim::User(uid), By::Running)));
    claims
}

/// Returns a finding if several VMs have the claim.
fn conflict(claim: Claim<'_>, who: &[(&VmName, By)]) -> Option<Finding> {
    let mut vms: Vec<&VmName> = who.iter().map(|(vm, _)| *vm).collect();
    vms.sort();
    vms.dedup();
    let mut files: Vec<&VmName> =
        who.iter().filter(|(_, by)| *by == By::File).map(|(vm, _)| *vm).collect();
    files.dedup();
    // A conflict of two VM files is already a problem of `qvm check`.
    if vms.len() < 2 || files.len() == vms.len() {
        return None;
    }
    let all = names(vms.iter().copied());
    let has = |by: By| who.iter().any(|(_, who)| *who == by);
    let todo = match (has(By::Identity), has(By::Running)) {
        _ if matches!(claim, Claim::User(_)) => "stop and start one of them: it gets another UID",
        (true, _) => {
            "if one is a copy of the other, stop it and remove its identity.toml: the next start \
             creates another identity"
        }
        (false, true) => {
            "reboot the VM whose file has changed (`qvm diff`), or change one of the addresses"
        }
        (false, false) => "change one of them",
    };
    let finding = match claim {
        Claim::Mac(mac) => Finding::error(
            FindingCode::SameMac,
            "addresses",
            format!("{all} have the same MAC address `{mac}`"),
        ),
        Claim::Address(ip) => Finding::error(
            FindingCode::SameAddress,
            "addresses",
            format!("{all} have the same address `{ip}`"),
        ),
        Claim::Uuid(uuid) => Finding::warning(
            FindingCode::SameUuid,
            "addresses",
            format!("{all} have the same UUID `{uuid}`"),
        ),
        Claim::User(uid) => {
            let found =
                format!("{all} have the same UID {uid}: their QEMU processes are not isolated");
            Finding::error(FindingCode::SameUser, "isolation", found)
        }
    };
    Some(finding.todo(todo))
}
