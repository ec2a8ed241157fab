//! VMs that boot once for many tests: the guest's state is saved beside the guest images, and each
//! test continues from it in a new lab.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

use super::{Lab, guest, guests};

/// The inputs of a saved VM: a state is used only with the same inputs.
pub(crate) struct Key(Sha256);

impl Key {
    /// The version of QEMU, and the text of `more`.
    pub(crate) fn new(more: &str) -> Self {
        let program = std::env::var_os("QVM_TEST_QEMU").unwrap_or("qemu-system-x86_64".into());
        let version = Command::new(program).arg("--version").output().unwrap();
        Self(Sha256::new()).and(&version.stdout).and(more.as_bytes())
    }

    /// The QEMU command line of a VM in a lab that `write` makes, without the parts that differ
    /// between labs.
    pub(crate) fn of_vm(vm: &str, write: impl FnOnce() -> Lab) -> Self {
        let lab = write();
        let plan = lab.ok(&["plan", vm]).replace(lab.path().to_str().unwrap(), "");
        let mut words: Vec<&str> = plan.lines().collect();
        if let Some(at) = words.iter().position(|word| *word == "-uuid") {
            words.remove(at + 1);
        }
        words.retain(|word| !word.contains("\"mac\":"));
        Self::new(&words.join("\n"))
    }

    pub(crate) fn and(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes.len().to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// The content of a file; for a guest image, the checksum that its build wrote beside it.
    pub(crate) fn and_file(self, path: &Path) -> Self {
        let sum = PathBuf::from(format!("{}.sha256", path.display()));
        let bytes = fs::read(if sum.exists() { &sum } else { path }).unwrap();
        self.and(&bytes)
    }

    fn name(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Lab {
    /// Returns a lab with the VM `vm` suspended, as `prepare` left it. `prepare` runs once for each
    /// key; its files beside the VM file are in the lab too.
    pub(crate) fn saved(vm: &str, kind: &str, key: Key, prepare: impl FnOnce() -> Self) -> Self {
        let saved = guests().join("saved");
        fs::create_dir_all(&saved).unwrap();
        let (prefix, dir) = (format!("{kind}-"), saved.join(format!("{kind}-{}", key.name())));
        let lock = File::create(dir.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        if !dir.join("complete").exists() {
            remove_others(&saved, &prefix);
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            let lab = prepare();
            lab.ok(&["suspend", vm]);
            copy(&lab.state(vm, ""), &dir.join("state"));
            copy(lab.file(vm).parent().unwrap(), &dir.join("vms"));
            File::create(dir.join("complete")).unwrap();
        }
        let lab = Self::new();
        copy(&dir.join("state"), &lab.state(vm, ""));
        copy(&dir.join("vms"), lab.file(vm).parent().unwrap());
        lab
    }

    /// A lab in which the tiny Linux guest runs as `web` with `more` in its VM file, and its agent
    /// answers. For each `kind` the guest boots once, runs the shell script `prepare` and is saved:
    /// every test continues from there. One kind has one `more` and one `prepare`.
    pub(crate) fn tiny(kind: &str, more: &str, prepare: &str) -> Option<Self> {
        let image = guest("tiny.qcow2")?;
        let written = || {
            let lab = Self::new();
            lab.vm("web", &image, &format!("mem = \"256M\"\n{more}"));
            lab
        };
        let answers = |lab: &Self| {
            lab.ok(&["wait", "web", "--for", "agent", "--timeout", "1200"]);
        };
        let key = Key::of_vm("web", written).and(prepare.as_bytes()).and_file(&image);
        let lab = Self::saved("web", &format!("tiny-{kind}"), key, || {
            let lab = written();
            lab.ok(&["start", "web"]);
            lab.says("web", "QVM-TINY READY", 1);
            answers(&lab);
            if !prepare.is_empty() {
                lab.ok(&["exec", "web", "--", "sh", "-c", prepare]);
            }
            lab
        });
        lab.restore("web");
        answers(&lab);
        Some(lab)
    }

    /// The same with a disk `data` of 64 MiB, whose file system is mounted on /data.
    pub(crate) fn tiny_with_data() -> Option<Self> {
        let prepare = "d=/dev/$(grep -lx data /sys/block/vd*/serial | cut -d/ -f4) && \
                       mke2fs $d >/dev/null && mkdir /data && mount -t ext4 $d /data && \
                       touch /data/before && sync";
        Self::tiny("data", "[disk.data]\nsize = \"64M\"\n", prepare)
    }

    /// Resumes a suspended VM.
    pub(crate) fn restore(&self, vm: &str) {
        assert!(self.state(vm, "saved.state").exists());
        self.ok(&["start", vm]);
        // If QEMU refuses the saved state, the VM boots instead.
        assert!(!self.state(vm, "unusable.state").exists(), "{}", self.status(vm)["notes"]);
    }
}

/// Copies the content of a directory, with holes and owners.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut cp = Command::new("cp");
    cp.args(["-a", "--sparse=auto", "--reflink=auto"]).arg(from.join(".")).arg(to);
    assert!(cp.status().unwrap().success(), "cp {} {}", from.display(), to.display());
}

/// Removes the states of other keys that no test uses. Their locks stay, because another test may
/// wait for one.
fn remove_others(saved: &Path, prefix: &str) {
    for entry in fs::read_dir(saved).unwrap().flatten() {
        let path = entry.path();
        let other = entry.file_name().to_string_lossy().starts_with(prefix) && path.is_dir();
        let lock = path.with_extension("lock");
        if other && File::create(lock).is_ok_and(|lock| lock.try_lock().is_ok()) {
            fs::remove_dir_all(&path).unwrap();
        }
    }
}
