//! Control groups: whether the weights and limits of VM files can be applied.

use super::{
    code::FindingCode,
    finding::{Finding, names},
    seen::Seen,
};
use crate::{
    machine::resources,
    spec::Vm,
    sys::cgroup::weights,
    value::{Explain, VmName},
};

/// The controllers that keys of a VM file require.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "io"];

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let cgroups = &seen.cgroups;
    let root = match &cgroups.root {
        Ok(root) => root,
        Err(error) => {
            let wanted = wanting(seen, |_| true);
            let hybrid = match (error, cgroups.hybrid) {
                (weights::Error::Version1(_), true) => {
                    "; cgroup v2 is also mounted, without its controllers (the \"hybrid\" layout)"
                }
                _ => "",
            };
            let found = format!("{error}{hybrid}{}", without(&wanted));
            let level = if wanted.is_empty() { Finding::note } else { Finding::warning };
            return vec![level(FindingCode::CgroupNotV2, "cgroup", found).maybe_todo(error.hint())];
        }
    };
    let has = |list: &[String], controller: &str| list.iter().any(|name| name == controller);
    let available = CONTROLLERS.map(|name| (name, has(&cgroups.available, name)));
    let there: Vec<&str> =
        available.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let (on, off): (Vec<&str>, Vec<&str>) =
        there.into_iter().partition(|name| has(&cgroups.enabled, name));
    let list = |names: &[&str]| match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let later = match off.as_slice() {
        [] => String::new(),
        off => format!("; enabled when a VM file requires them: {}", list(off)),
    };
    let found = format!(
        "version 2 at `{}`; controllers enabled for `{}`: {}{later}",
        root.display(),
        cgroups.of_vms,
        list(&on)
    );
    let missing = available.into_iter().filter(|(_, there)| !there).map(|(name, _)| {
        let wanted = wanting(seen, |controller| controller == name);
        let level = if wanted.is_empty() { Finding::note } else { Finding::warning };
        let found = format!("there is no controller `{name}`{}", without(&wanted));
        level(FindingCode::CgroupNoController, "cgroup", found).todo(
            "check `cgroup.controllers` at the root: the kernel command line may disable the \
             controller, or cgroup v1 may use it",
        )
    });
    std::iter::once(Finding::ok(FindingCode::Cgroup, "cgroup", found)).chain(missing).collect()
}

fn wanting(seen: &Seen, of: impl Fn(&str) -> bool) -> Vec<&VmName> {
    let wants = |vm: &&Vm| {
        resources::settings(vm).iter().any(|setting| setting.wanted && of(setting.controller))
    };
    seen.written().filter(wants).map(|vm| &vm.name).collect()
}

fn without(wanted: &[&VmName]) -> String {
    match wanted {
        [] => String::new(),
        wanted => {
            format!(": weights and limits of {} have no effect", names(wanted.iter().copied()))
        }
    }
}
