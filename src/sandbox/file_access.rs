//! The files that a QEMU in the sandbox may open by name (landlock(7)).

use std::path::{Path, PathBuf};

/// The access of QEMU to a path and everything below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read and execute: libraries and their loader.
    Execute,
    /// Read only: firmware.
    Read,
    /// Read, write and ioctl.
    Device,
}

/// The directories of programs, libraries, firmware and ROMs, and the devices that QEMU opens.
/// Missing ones are skipped.
const PLACES: [(&str, Right); 14] = [
    ("/usr/lib", Right::Execute),
    ("/usr/lib64", Right::Execute),
    ("/usr/lib32", Right::Execute),
    ("/lib", Right::Execute),
    ("/lib64", Right::Execute),
    // NixOS and Guix.
    ("/nix/store", Right::Execute),
    ("/gnu/store", Right::Execute),
    ("/run/current-system/sw", Right::Execute),
    ("/usr/share", Right::Read),
    ("/etc/ld.so.cache", Right::Read),
    ("/etc/localtime", Right::Read),
    ("/dev/urandom", Right::Read),
    ("/dev/null", Right::Device),
    ("/dev/kvm", Right::Device),
];

/// The subdirectories of a QEMU with another prefix.
const BELOW_PREFIX: [&str; 5] = ["bin", "lib", "lib64", "libexec", "share"];

/// Returns the paths that QEMU may open by name: its program, firmware and /dev/kvm suffice, since
/// a VM's files, sockets and taps are passed as descriptors. `binary` contains no symbolic links;
/// `firmware` is the selected firmware.
pub fn open_to(binary: &Path, firmware: Option<&Path>) -> Vec<(PathBuf, Right)> {
    let mut all: Vec<_> =
        PLACES.iter().map(|(path, right)| (PathBuf::from(path), *right)).collect();
    all.push((binary.to_owned(), Right::Execute));
    // A QEMU with another prefix has its libraries and ROMs there: PREFIX/bin, PREFIX/lib,
    // PREFIX/share.
    let bin = binary.parent();
    let prefix = bin.filter(|dir| dir.ends_with("bin")).and_then(Path::parent);
    match prefix {
        Some(prefix) if prefix != Path::new("/") && prefix != Path::new("/usr") => {
            for below in BELOW_PREFIX {
                all.push((prefix.join(below), Right::Execute));
            }
        }
        _ => {}
    }
    all.extend(firmware.map(|path| (path.to_owned(), Right::Read)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_prefixes_add_paths() {
        let of = |binary: &str| open_to(Path::new(binary), None).len();
        assert_eq!(of("/usr/bin/qemu-system-x86_64"), PLACES.len() + 1);
        assert_eq!(of("/opt/qemu/bin/qemu-system-x86_64"), PLACES.len() + 6);
        let all = open_to(Path::new("/usr/bin/qemu"), Some(Path::new("/srv/OVMF.fd")));
        assert_eq!(all.last(), Some(&(PathBuf::from("/srv/OVMF.fd"), Right::Read)));
        // Neither the host settings nor files of VMs.
        for closed in ["/etc/qvm", "/etc", "/var/lib/qvm", "/run/qvm", "/proc", "/", "/home"] {
            assert!(!all.iter().any(|(open, _)| Path::new(closed) == open), "{closed}");
        }
    }
}
