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
            Module::There | Module::Unknown => return None,
            Module::NotInstalled => (
                format!("finds no module `{name}`"),
                "install the rest of its modules (a package such as `linux-modules-extra` or `kernel-modules-extra`), and \
                 `modprobe -a sch_ingress cls_bpf`",
            ),
            Module::Shut => (
                format!("has not loaded `{name}`, and loads no module any more (`kernel.modules_disabled`)"),
                "name `sch_ingress` and `cls_bpf` in a file of /etc/modules-load.d, and boot",
            ),
        })
    });
    let Some((why, todo)) = missing else {
        let all = !found.is_empty() && found.iter().all(|one| *one == Module::There);
        let found = format!("the kernel filters what leaves the taps of {}", names(wanting));
        return all
            .then(|| Finding::ok(FindingCode::AntiSpoof, about, found))
            .into_iter()
            .collect();
    };
    let unfiltered =
        format!("this kernel {why}: what leaves the taps of {} is not filtered", names(wanting));
    let finding = match demanding.as_slice() {
        [] => Finding::new(FindingCode::NotFiltered, Level::Warning, about, unfiltered),
        demanding => {
            let refused =
                format!("{unfiltered}, and {} cannot start", names(demanding.iter().copied()));
            Finding::new(FindingCode::NotFiltered, Level::Error, about, refused)
        }
    };
    vec![finding.todo(format!("{todo}; `antiSpoof = false` goes without"))]
}
