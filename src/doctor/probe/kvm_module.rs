//! The kernel module of /dev/kvm, and the processor's support.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::{doctor::rules::KvmSeen, machine::facts::Kvm};

/// Probes everything except the device itself, which is `usable`; `root` is `/`.
pub fn read(root: &Path, usable: Kvm) -> KvmSeen {
    let modules = root.join("sys/module");
    let module = ["kvm_intel", "kvm_amd"].into_iter().find(|name| modules.join(name).is_dir());
    let nested = module.is_some_and(|name| {
        let parameter = modules.join(name).join("parameters/nested");
        fs::read_to_string(parameter).is_ok_and(|text| matches!(text.trim(), "Y" | "1"))
    });
    let processor = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    // All processors of a host have the same flags.
    let flags = processor.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let offered = flags.is_some_and(|(_, flags)| {
        flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"))
    });
    let device = fs::metadata(root.join("dev/kvm")).ok();
    let only_root = rustix::process::geteuid().is_root()
        && device.is_some_and(|d| is_only_roots(d.mode(), d.gid()));
    KvmSeen { usable, only_root, module: module.map(str::to_owned), nested, offered }
}

/// Whether only root has read and write access.
fn is_only_roots(mode: u32, group: u32) -> bool {
    let group = mode & 0o060 == 0o060 && group != 0;
    mode & 0o006 != 0o006 && !group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_parameter_and_flags() {
        let root = tempfile::tempdir().unwrap();
        let bare = KvmSeen {
            usable: Kvm::Missing,
            only_root: false,
            module: None,
            nested: false,
            offered: false,
        };
        assert_eq!(read(root.path(), Kvm::Missing), bare);
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("proc")).unwrap();
        fs::write(at("proc/cpuinfo"), "vmx flags\t: no\nflags\t\t: fpu svm_lock\n").unwrap();
        assert!(!read(root.path(), Kvm::Missing).offered);
        fs::write(at("proc/cpuinfo"), "processor\t: 0\nflags\t\t: fpu svm sse\n").unwrap();
        fs::create_dir_all(at("sys/module/kvm_amd/parameters")).unwrap();
        let seen = read(root.path(), Kvm::Usable);
        assert_eq!(
            (seen.module.as_deref(), seen.nested, seen.offered),
            (Some("kvm_amd"), false, true)
        );
        for (text, nested) in [("1\n", true), ("Y\n", true), ("0\n", false), ("N\n", false)] {
            fs::write(at("sys/module/kvm_amd/parameters/nested"), text).unwrap();
            assert_eq!(read(root.path(), Kvm::Usable).nested, nested, "{text}");
        }
    }

    #[test]
    fn device_mode_and_group_admit_other_users() {
        for (mode, group, alone) in [
            (0o600, 0, true),
            (0o600, 36, true),
            (0o660, 0, true),
            (0o640, 36, true),
            (0o660, 36, false),
            (0o666, 0, false),
        ] {
            assert_eq!(is_only_roots(0o020_000 | mode, group), alone, "{mode:o} {group}");
        }
    }
}
