//! The files that a QEMU in the sandbox may open by name (landlock(7)).

use std::path::{Path, PathBuf};

/// What QEMU may do with a directory or file, and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read, and execute: libraries and their loader.
    Execute,
    /// Read: firmware.
    Read,
    /// Read, write, and the device's own commands.
    Device,
}

/// Where programs and their libraries are; firmware and ROMs; and the devices that QEMU opens. What is not there is passed over.
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

/// Where a QEMU that was installed elsewhere has its own.
const BELOW_PREFIX: [&str; 5] = ["bin", "lib", "lib64", "libexec", "share"];

/// The files that a QEMU may open by their names: all that it needs is its program, firmware and /dev/kvm, since a VM's own files,
/// sockets and taps come as descriptors. `binary` has no symbolic links in it; `firmware` is what the VM file has chosen.
pub fn open_to(binary: &Path, firmware: Option<&Path>) -> Vec<(PathBuf, Right)> {
    let mut all: Vec<_> =
        PLACES.iter().map(|(path, right)| (PathBuf::from(path), *right)).collect();
    all.push((binary.to_owned(), Right::Execute));
    // A QEMU that was installed elsewhere has its libraries and ROMs beside it: PREFIX/bin, PREFIX/lib, PREFIX/share.
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
    fn a_qemu_elsewhere_has_its_own_places_and_one_in_usr_no_more() {
        let of = |binary: &str| open_to(Path::new(binary), None).len();
        assert_eq!(of("/usr/bin/qemu-system-x86_64"), PLACES.len() + 1);
        assert_eq!(of("/opt/qemu/bin/qemu-system-x86_64"), PLACES.len() + 6);
        let all = open_to(Path::new("/usr/bin/qemu"), Some(Path::new("/srv/OVMF.fd")));
        assert_eq!(all.last(), Some(&(PathBuf::from("/srv/OVMF.fd"), Right::Read)));
        // Neither the host's settings nor any VM's files.
        for closed in ["/etc/qvm", "/etc", "/var/lib/qvm", "/run/qvm", "/proc", "/", "/home"] {
            assert!(!all.iter().any(|(open, _)| Path::new(closed) == open), "{closed}");
        }
    }
}
