//! A VM whose QEMU runs without a supervisor.

use std::path::{Path, PathBuf};

use super::{Lab, guest, runs, signal};

/// The VM `web`, whose supervisor was killed. Its QEMU is killed when this is dropped, even without
/// a run record.
pub(crate) struct Orphaned {
    pub(crate) lab: Lab,
    pub(crate) qemu: i32,
}

impl Orphaned {
    /// `None` without a guest image of this name.
    pub(crate) fn new(image: &str) -> Option<Self> {
        let image = guest(image)?;
        let lab = Lab::new();
        lab.vm("web", &image, "");
        Some(Self::of(lab))
    }

    /// Creates the VM with a guest that has booted.
    pub(crate) fn booted(image: &str) -> Option<Self> {
        let image = guest(image)?;
        let mut lab = Lab::new();
        lab.vm("web", &image, "");
        let supervisor = lab.run("web");
        lab.says("web", "BOOT-GUEST-READY", 1);
        Some(Self::left_by(lab, supervisor))
    }

    /// Starts the VM `web` of a lab, and kills its supervisor.
    pub(crate) fn of(mut lab: Lab) -> Self {
        let supervisor = lab.run("web");
        Self::left_by(lab, supervisor)
    }

    fn left_by(mut lab: Lab, supervisor: usize) -> Self {
        lab.wait_state("web", "running");
        let qemu = lab.qemu_pid("web");
        lab.supervisor(supervisor).kill().unwrap();
        lab.supervisor(supervisor).wait().unwrap();
        Self { lab, qemu }
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.lab.runtime("web", "record.json")
    }

    /// The liveness locks of the VM: the one in the runtime directory, and the one beside the
    /// disks.
    pub(crate) fn locks(&self) -> [PathBuf; 2] {
        locks(&self.lab, "web")
    }
}

impl Drop for Orphaned {
    fn drop(&mut self) {
        if runs(self.qemu) {
            signal(self.qemu, 9);
        }
    }
}

/// Both liveness locks of a VM.
pub(crate) fn locks(lab: &Lab, vm: &str) -> [PathBuf; 2] {
    let is_lock = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("qemu.") && name.ends_with(".lock")
    };
    let entries = std::fs::read_dir(lab.state(vm, "")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| is_lock(path));
    assert_eq!(found.len(), 1, "{found:?}");
    [lab.runtime(vm, "qemu.lock"), found.remove(0)]
}
