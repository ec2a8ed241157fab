//! The effective CPU weights and shares of running VMs, read from all their cgroups together, since
//! shares are relative.

use std::path::Path;

use super::inventory::Entry;
use crate::{
    sys::cgroup::{self, Weights, weights},
    value::{Note, NoteCode},
};

/// Sets the effective weights and the shares of the running VMs, and adds a note for a weight
/// without effect; `proc` is `/proc`. They stay unknown without cgroup v2.
pub fn weigh(entries: &mut [Entry], proc: &Path) {
    let Ok(root) = cgroup::root(proc) else { return };
    let mut weights = Weights::new(root.clone());
    for status in entries.iter_mut().map(|entry| &mut entry.status) {
        let Some(directory) = status.pid.and_then(|pid| cgroup::of_process(&root, proc, pid))
        else {
            continue;
        };
        let levels = weights.levels(&directory);
        let effect = weights::effect(&levels, status.cpu_weight);
        status.cpu_weight_effective = effect.weight;
        status.cpu_share = effect.share;
        let note = effect.void.map(|why| {
            let text = format!("`cpuWeight` is not in effect: {why}");
            Note::new(NoteCode::WeightVoid, text).key("cpuWeight")
        });
        // The supervisor has noted already that it could not set the weight.
        let is_noted = status.notes.iter().any(|note| note.is_of(NoteCode::NoEffect, "cpuWeight"));
        status.notes.extend(note.filter(|_| !is_noted));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{fleet::inventory, store::layout::Layout, sys::storage_reader::StorageReader};

    #[tokio::test(flavor = "current_thread")]
    async fn shares_are_relative() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let cgroups = dir.path().join("cg");
        let mount = format!("9 1 0:28 / {} rw - cgroup2 cgroup2 rw\n", cgroups.display());
        write("proc/self/mountinfo", &mount);
        for (pid, name, weight) in [(11, "db", 100), (12, "web", 300)] {
            write(&format!("vms/{name}.toml"), &format!("cpuWeight = {weight}\n"));
            write(&format!("proc/{pid}/cgroup"), &format!("0::/qvm.slice/qvm@{name}.service\n"));
            let cgroup = format!("cg/qvm.slice/qvm@{name}.service");
            write(&format!("{cgroup}/cpu.weight"), &format!("{weight}\n"));
            write(&format!("{cgroup}/cgroup.events"), "populated 1\n");
        }
        write("cg/qvm.slice/cpu.weight", "100\n");
        write("cg/qvm.slice/cgroup.events", "populated 1\n");
        let layout =
            Layout { config: dir.path().into(), state: dir.path().into(), runtime: "/none".into() };
        let mut all = inventory::inventory(&StorageReader::default(), &layout, &[]).await;
        let find = |all: &[Entry], name: &str| all.iter().position(|e| e.name == name).unwrap();
        let (db, web) = (find(&all, "db"), find(&all, "web"));
        (all[db].status.pid, all[web].status.pid) = (Some(11), Some(12));
        (all[db].status.cpu_weight, all[web].status.cpu_weight) = (100, 77);
        weigh(&mut all, &dir.path().join("proc"));
        assert_eq!(
            (all[db].status.cpu_weight_effective, all[db].status.cpu_share),
            (Some(100), Some(0.25))
        );
        assert_eq!(
            (all[web].status.cpu_weight_effective, all[web].status.cpu_share),
            (Some(300), Some(0.75))
        );
        let note = all[web].status.notes.last().unwrap();
        assert!(note.is_of(NoteCode::WeightVoid, "cpuWeight"), "{note:?}");
        assert!(!all[db].status.notes.iter().any(|note| note.code == NoteCode::WeightVoid));
    }
}
