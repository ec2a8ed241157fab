//! The required state of a VM after a kill of its supervisor: it can be started, is complete, and
//! has no leftovers.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use super::lab::{Lab, guest, runs, until};

/// The offset and content of a mark in a disk: a second copy of the image over the disk would
/// remove it.
const MARK: [&str; 2] = ["-c", "write -q -P 0xa5 640k 64k"];

/// The guest counts on its console, which shows that it runs.
pub(crate) const GUEST: &str = "boot-count.qcow2";

/// The state of the VM before a phase.
pub(crate) struct Before {
    state: tempfile::TempDir,
    /// The root disk with the mark.
    pub(crate) disk: PathBuf,
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success(), "cp -a {} {}", from.display(), to.display());
}

/// A lab with the VM `web`.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    /// The expected content of the root disk.
    pub(crate) same_as: PathBuf,
    /// The expected identity.toml, if there was one.
    identity: Option<Vec<u8>>,
    /// The length of the console log.
    said: usize,
}

impl Scene {
    /// Creates an empty lab.
    pub(crate) fn new(file: &dyn Fn(&Lab)) -> Self {
        let lab = Lab::new();
        file(&lab);
        Self { lab, same_as: guest(GUEST).unwrap(), identity: None, said: 0 }
    }

    /// Creates a lab with the state of `before`.
    pub(crate) fn after(before: &Before, file: &dyn Fn(&Lab)) -> Self {
        let mut scene = Self::new(file);
        copy(&before.state.path().join("s"), &scene.lab.path().join("s"));
        scene.same_as = before.disk.clone();
        scene.identity = fs::read(scene.lab.state("web", "identity.toml")).ok();
        scene.said = scene.lab.console("web").len();
        scene
    }

    /// Runs the VM, marks its disk, and shuts it down; `more` is done while it runs.
    pub(crate) fn kept(file: &dyn Fn(&Lab), end: &[&str]) -> Before {
        let lab = Lab::new();
        file(&lab);
        lab.ok(&["start", "web"]);
        lab.says("web", "COUNT ", 1);
        lab.ok(&["stop", "web"]);
        let disk = lab.state("web", "root.qcow2");
        let marked = Command::new("qemu-io").args(["-f", "qcow2"]).args(MARK).arg(&disk).status();
        assert!(marked.unwrap().success());
        if !end.is_empty() {
            lab.ok(&["start", "web"]);
            lab.says("web", "BOOT-GUEST-READY", 2);
            until("it counts", || {
                lab.console("web").rsplit("BOOT-GUEST-READY").next().unwrap().contains("COUNT ")
            });
            lab.ok(end);
        }
        let state = tempfile::tempdir().unwrap();
        copy(&lab.path().join("s"), &state.path().join("s"));
        let disk = state.path().join("s/vms/web/root.qcow2");
        Before { state, disk }
    }

    /// Expects the present identity.toml from now on.
    pub(crate) fn remember(&mut self) {
        self.identity =
            fs::read(self.lab.state("web", "identity.toml")).ok().or(self.identity.take());
    }

    /// Returns the console output of the guest.
    fn console(&self) -> String {
        self.lab.console("web").get(self.said..).unwrap_or_default().to_owned()
    }

    /// Whether the guest is seen to count.
    pub(crate) fn counts(&self) -> bool {
        self.console().contains("COUNT ")
    }

    /// The number of boots of the guest.
    pub(crate) fn boots(&self) -> usize {
        self.console().matches("BOOT-GUEST-READY").count()
    }

    /// The processes of this lab, without zombies.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let place = self.lab.path().to_string_lossy().into_owned();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = pids.filter(|pid| {
            // A thread of this process may have forked without having executed a program.
            let says = |file: &str| {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&place)
            };
            runs(*pid) && (says("environ") || says("cmdline"))
        });
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ours.map(|pid| (pid, name(pid).trim().to_owned())).collect()
    }

    /// Whether only QEMU is running, except one that prints its version.
    pub(crate) fn has_only_qemu(&self) -> bool {
        self.processes().iter().all(|(pid, name)| {
            let asked = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.starts_with("qemu-system") && asked.contains("-qmp") | asked.contains("-mon")
        })
    }

    pub(crate) fn qemus(&self) -> Vec<i32> {
        let all = self.processes();
        all.into_iter()
            .filter(|(_, name)| name.starts_with("qemu-system"))
            .map(|(p, _)| p)
            .collect()
    }

    /// Checks that a start succeeds with exactly one QEMU.
    pub(crate) fn starts(&self) {
        self.lab.ok(&["start", "web"]);
        self.runs();
    }

    /// Checks that the VM runs, and that its status is correct.
    pub(crate) fn runs(&self) {
        let said = self.console().matches("COUNT ").count();
        let begun = std::time::Instant::now();
        while self.console().matches("COUNT ").count() <= said + 1 {
            if begun.elapsed() >= std::time::Duration::from_secs(20) {
                if std::env::var_os("QVM_HOLD").is_some() {
                    println!("held: {}", self.lab.path().display());
                    std::thread::sleep(std::time::Duration::from_secs(900));
                }
                let supervisor = fs::read_to_string(self.lab.state("web", "supervisor.log"));
                panic!(
                    "the guest does not count: {:?}\n{}{supervisor:?}",
                    self.console(),
                    self.lab.log("web")
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.lab.wait_state("web", "running");
        let status = self.lab.status("web");
        assert_eq!(self.qemus(), [self.lab.qemu_pid("web")]);
        assert_eq!(status["pid"], self.lab.qemu_pid("web"));
        self.files_are_those_of_a_vm_that_runs();
        let taps = status["tap"].as_str().map(str::to_owned);
        assert_eq!(self.taps(), taps.into_iter().collect::<Vec<_>>());
    }

    /// The taps in its network.
    fn taps(&self) -> Vec<String> {
        let Some(network) = &self.lab.network else { return vec![] };
        let output = network.command("ip").args(["-o", "link", "show", "type", "tun"]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let names = text.lines().filter_map(|line| line.split(": ").nth(1));
        names.map(|name| name.split('@').next().unwrap().to_owned()).collect()
    }

    /// The names in a directory.
    fn names(&self, dir: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    fn only(&self, dir: &Path, allowed: &[&str], needed: &[&str]) {
        let names = self.names(dir);
        for name in &names {
            assert!(
                allowed.contains(&name.as_str()) || needed.contains(&name.as_str()),
                "{} is in {}",
                name,
                dir.display()
            );
        }
        for name in needed {
            assert!(names.contains(*name), "{name} is not in {}: {names:?}", dir.display());
        }
    }

    fn files_are_those_of_a_vm_that_runs(&self) {
        let sockets = [
            "agent.sock",
            "serial.sock",
            "qmp.sock",
            "control.sock",
            "lock",
            "qemu.lock",
            "record.json",
            "booted.toml",
        ];
        self.only(&self.lab.runtime("web", ""), &["reloaded.toml"], &sockets);
        self.state_is_whole();
    }

    /// Checks that the state directory has only permanent files.
    fn state_is_whole(&self) {
        let may = [
            "seed.iso",
            "data.raw",
            "data.origin.json",
            "ends.json",
            "last-words.json",
            "supervisor.log",
            "console.log",
            "console.log.times",
        ];
        let names = self.names(&self.lab.state("web", ""));
        let snapshots =
            names.iter().filter(|name| name.starts_with("root@") || name.starts_with("snapshots"));
        let must = ["identity.toml", "root.qcow2", "root.origin.json"];
        let lock = self
            .names(&self.lab.state("web", ""))
            .into_iter()
            .find(|name| name.starts_with("qemu.") && name.ends_with(".lock"));
        let may: Vec<&str> =
            may.into_iter().chain(lock.as_deref()).chain(snapshots.map(String::as_str)).collect();
        self.only(&self.lab.state("web", ""), &may, &must);
        let place = self.lab.path().join("s");
        self.only(&place, &["images", "uids.lock"], &["vms", "qemu.json"]);
        self.only(&place.join("vms"), &[], &["web"]);
        serde_json::from_slice::<serde_json::Value>(&fs::read(place.join("qemu.json")).unwrap())
            .unwrap();
        for name in self.names(&place.join("images")) {
            let path = place.join("images").join(&name);
            let end = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            assert!(
                !name.starts_with('.') && ["json", "qcow2"].contains(&&*end),
                "{name} is in images/"
            );
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert!(end == "json" || mode == 0o440, "{name} has the mode {mode:o}");
        }
        if let Some(identity) = &self.identity {
            assert_eq!(
                *identity,
                fs::read(self.lab.state("web", "identity.toml")).unwrap(),
                "the identity is another"
            );
        }
    }

    /// Without a state, the VM gets a new disk and identity.
    pub(crate) fn starts_anew(&self) {
        let scene = &self.lab;
        scene.ok(&["start", "web"]);
        scene.says("web", "COUNT ", 2);
        scene.ok(&["stop", "web"]);
        self.disk_is(&guest(GUEST).unwrap());
    }

    /// Writes data to the disk that is not in its image.
    pub(crate) fn write_second_mark(&self) {
        let disk = self.lab.state("web", "root.qcow2");
        let write = ["-f", "qcow2", "-c", "write -q -P 0x5a 576k 64k"];
        assert!(Command::new("qemu-io").args(write).arg(disk).status().unwrap().success());
    }

    /// Whether a file of the state directory has what was written last. What was written before is
    /// in every one, and each is whole.
    pub(crate) fn has_second_mark(&self, file: &str) -> bool {
        let disk = self.lab.state("web", file);
        let reads = |pattern: &str| {
            let read = ["-r", "-U", "-f", "qcow2", "-c", pattern];
            let output = Command::new("qemu-io").args(read).arg(&disk).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("64 KiB"), "{text}{}", String::from_utf8_lossy(&output.stderr));
            !text.contains("verification failed")
        };
        let check = ["check", "-q", "-U", "-f", "qcow2"];
        assert!(Command::new("qemu-img").args(check).arg(&disk).status().unwrap().success());
        assert!(reads("read -P 0xa5 640k 64k"), "{file} has lost the first mark");
        reads("read -P 0x5a 576k 64k")
    }

    /// The snapshots that can be used or removed, and their files.
    pub(crate) fn snapshots(&self) -> Vec<(String, String)> {
        let text = self.lab.ok(&["snapshot", "list", "web", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        all.as_array()
            .unwrap()
            .iter()
            .map(|one| {
                let file = text(&one["disks"][0]["file"]);
                (text(&one["name"]), file.rsplit('/').next().unwrap().to_owned())
            })
            .collect()
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        let disk = self.lab.state("web", "root.qcow2");
        let output = Command::new("qemu-img").args(["info", "--output=json"]).arg(disk).output();
        let info: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        info["virtual-size"].as_u64().unwrap()
    }

    /// Checks that the VM can be stopped, its disk is unchanged, and nothing remains.
    pub(crate) fn stops(&self) {
        self.lab.ok(&["stop", "web"]);
        assert_eq!(self.lab.last_reason("web"), "stopped");
        self.is_down();
    }

    /// Checks that nothing runs, and that the disk is unchanged.
    pub(crate) fn is_down(&self) {
        until("no process is left", || self.processes().is_empty());
        self.only(&self.lab.runtime("web", ""), &["qemu.lock"], &["lock"]);
        assert_eq!(self.taps(), Vec::<String>::new());
        self.state_is_whole();
        self.disk_is(&self.same_as);
    }

    /// Checks that the disk is intact and has this content.
    fn disk_is(&self, same_as: &Path) {
        let disk = self.lab.state("web", "root.qcow2");
        let qemu_img = |arguments: &[&str], paths: &[&Path]| {
            let output = Command::new("qemu-img").args(arguments).args(paths).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success(),
                "qemu-img {arguments:?}: {said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&disk]);
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "qcow2"], &[&disk, same_as]);
    }
}

impl Drop for Scene {
    /// Also ends a QEMU without a run record, which the lab would not find.
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}
