//! Whether the running kernel has a module: by /proc/modules, else by modprobe(8).

use std::{fs, path::Path};

use crate::doctor::rules::Module;

/// The kernel modules of the host.
#[derive(Debug)]
pub struct Modules {
    /// `/proc/modules` (proc(5)); empty if it cannot be read.
    loaded: String,
    /// `kernel.modules_disabled` is 1: no further module can be loaded.
    locked: bool,
    /// The modules of the running kernel are installed; a container has none.
    installed: bool,
}

/// The directories of modules, with `RELEASE` below; the second one is NixOS'.
const PLACES: [&str; 2] = ["lib/modules", "run/booted-system/kernel-modules/lib/modules"];

impl Modules {
    /// Reads below `root`, which is `/` except in tests.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let release = text("proc/sys/kernel/osrelease");
        let release = release.trim();
        let is_there = |place| root.join(place).join(release).join("modules.dep").is_file();
        Self {
            loaded: text("proc/modules"),
            locked: text("proc/sys/kernel/modules_disabled").trim() == "1",
            installed: !release.is_empty() && PLACES.into_iter().any(is_there),
        }
    }

    /// The state of the module `name`. `modprobe` runs `modprobe --show-depends NAME` and returns
    /// its output, an error if it fails, or `None` if there is no such program.
    pub fn state(
        &self,
        name: &str,
        modprobe: impl FnOnce() -> Option<Result<String, String>>,
    ) -> Module {
        let mut loaded = self.loaded.lines().filter_map(|line| line.split(' ').next());
        if loaded.any(|loaded| loaded == name) {
            return Module::Available;
        }
        match modprobe() {
            // `builtin NAME`, or `insmod PATH` for the module and what it depends on.
            Some(Ok(output)) if output.starts_with("builtin ") => Module::Available,
            Some(Ok(_)) if self.locked => Module::LoadingDisabled,
            Some(Ok(_)) => Module::Available,
            Some(Err(_)) if self.installed => Module::NotInstalled,
            Some(Err(_)) | None => Module::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADABLE: &str = "insmod /lib/modules/6.1.0-9/kernel/net/sched/cls_bpf.ko \n";

    /// The module `cls_bpf` on a host with these files and this answer of modprobe(8).
    fn state(files: &[(&str, &str)], modprobe: Option<Result<&str, &str>>) -> Module {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/sys/kernel/osrelease", "6.1.0-9\n")].iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let answer = || modprobe.map(|output| output.map(Into::into).map_err(Into::into));
        Modules::read(root.path()).state("cls_bpf", answer)
    }

    #[test]
    fn kernel_module_is_available() {
        let loaded = ("proc/modules", "tun 61440 1 - Live 0x0\ncls_bpf 28672 0 - Live 0x0\n");
        let locked = ("proc/sys/kernel/modules_disabled", "1\n");
        assert_eq!(state(&[loaded], None), Module::Available);
        assert_eq!(state(&[loaded, locked], Some(Err("not found"))), Module::Available);
        assert_eq!(state(&[], Some(Ok(LOADABLE))), Module::Available);
        assert_eq!(state(&[], Some(Ok("builtin cls_bpf\n"))), Module::Available);
        assert_eq!(state(&[locked], Some(Ok("builtin cls_bpf\n"))), Module::Available);
    }

    #[test]
    fn kernel_module_is_missing_or_unknown() {
        let installed = ("lib/modules/6.1.0-9/modules.dep", "");
        let other = ("lib/modules/6.1.0-8/modules.dep", "");
        let nixos = ("run/booted-system/kernel-modules/lib/modules/6.1.0-9/modules.dep", "");
        let locked = ("proc/sys/kernel/modules_disabled", "1\n");
        assert_eq!(state(&[installed], Some(Err("not found"))), Module::NotInstalled);
        assert_eq!(state(&[nixos], Some(Err("not found"))), Module::NotInstalled);
        assert_eq!(state(&[locked], Some(Ok(LOADABLE))), Module::LoadingDisabled);
        // A container sees the kernel but not its modules.
        assert_eq!(state(&[], Some(Err("not found"))), Module::Unknown);
        assert_eq!(state(&[other], Some(Err("not found"))), Module::Unknown);
        assert_eq!(state(&[installed], None), Module::Unknown);
    }
}
