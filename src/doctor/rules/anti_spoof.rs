//! Whether the kernel can filter the traffic of taps, for VMs with `antiSpoof`.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::{Module, NEEDED, Seen},
};
use crate::{
    net::tap_spec::{Tap, taps},
    spec::{AntiSpoof, Vm},
};

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let about = "antiSpoof";
    let who = |of: fn(&Vm, &Tap) -> bool| -> Vec<_> {
        let with = |vm: &&Vm| taps(vm).iter().any(|tap| of(vm, tap));
        seen.written().filter(with).map(|vm| &vm.name).collect()
    };
    let wanting = who(|_, tap| tap.anti_spoof != AntiSpoof::Off);
    if wanting.is_empty() {
        return vec![];
    }
    let demanding = who(|vm, tap| tap.needs_filter(vm.isolation));
    let found = &seen.network.filter_modules;
    let missing = NEEDED.iter().zip(found).find_map(|(name, found)| {
        Some(match found {
            Module::Available | Module::Unknown => return None,
            Module::NotInstalled => (
                format!("has no module `{name}`"),
                "install its extra modules (`linux-modules-extra` or `kernel-modules-extra`) and \
                 run `modprobe -a sch_ingress cls_bpf`",
            ),
            Module::LoadingDisabled => (
                format!("cannot load `{name}` (`kernel.modules_disabled` is set)"),
                "add `sch_ingress` and `cls_bpf` to a file in /etc/modules-load.d, then reboot",
            ),
        })
    });
    let Some((why, todo)) = missing else {
        let all = !found.is_empty() && found.iter().all(|one| *one == Module::Available);
        let found = format!("the kernel can filter the traffic of the taps of {}", names(wanting));
        return all
            .then(|| Finding::ok(FindingCode::AntiSpoof, about, found))
            .into_iter()
            .collect();
    };
    let unfiltered = format!("this kernel {why}: the taps of {} are not filtered", names(wanting));
    let finding = match demanding.as_slice() {
        [] => Finding::new(FindingCode::NotFiltered, Level::Warning, about, unfiltered),
        demanding => {
            let refused =
                format!("{unfiltered}, and {} cannot start", names(demanding.iter().copied()));
            Finding::new(FindingCode::NotFiltered, Level::Error, about, refused)
        }
    };
    vec![finding.todo(format!("{todo}; or set `antiSpoof = false`"))]
}
