//! A bridge in sysfs (Documentation/ABI/testing/sysfs-class-net of the kernel).

use std::{fs, path::Path};

use nix::net::if_::InterfaceFlags;

use crate::{
    doctor::rules::{Bridge, BridgePort, Interface},
    value::IfName,
};

/// Returns the interface with this name; `sys` is `/sys`, which shows the network namespace that it
/// was mounted in.
pub fn read(sys: &Path, name: &IfName) -> Interface {
    let net = sys.join("class/net");
    let directory = net.join(name.as_str());
    if !directory.exists() {
        return Interface::Missing;
    }
    let Some(stp) = number(&directory.join("bridge/stp_state")) else { return Interface::Other };
    let flags = fs::read_to_string(directory.join("flags")).unwrap_or_default();
    let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or_default();
    let ports = fs::read_dir(directory.join("brif")).into_iter().flatten().flatten();
    let mut ports: Vec<BridgePort> = ports
        .map(|port| {
            let name = port.file_name().to_string_lossy().into_owned();
            // Only the driver `tun` has this file.
            BridgePort { tap: net.join(&name).join("tun_flags").exists(), name }
        })
        .collect();
    ports.sort_by(|a, b| a.name.cmp(&b.name));
    Interface::Bridge(Bridge {
        up: flags & InterfaceFlags::IFF_UP.bits() != 0,
        mtu: number(&directory.join("mtu")).and_then(|mtu| u32::try_from(mtu).ok()),
        stp: u8::try_from(stp).unwrap_or(u8::MAX),
        forward_delay: number(&directory.join("bridge/forward_delay")).unwrap_or_default(),
        ports,
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridge_in_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join("class/net").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (path, text) in [
            ("br0/flags", "0x1003\n"),
            ("br0/mtu", "9000\n"),
            ("br0/bridge/stp_state", "1\n"),
            ("br0/bridge/forward_delay", "1500\n"),
            ("br0/brif/qvm-web/port_no", "0x1\n"),
            ("br0/brif/eth0/port_no", "0x2\n"),
            ("qvm-web/tun_flags", "0x1002\n"),
            ("eth0/flags", "0x1003\n"),
            ("br1/flags", "0x1002\n"),
            ("br1/bridge/stp_state", "0\n"),
            ("br1/bridge/forward_delay", "1500\n"),
        ] {
            write(path, text);
        }
        let read = |name: &str| read(sys.path(), &name.parse().unwrap());
        let port = |name: &str, tap| BridgePort { name: name.to_owned(), tap };
        let ports = vec![port("eth0", false), port("qvm-web", true)];
        let bridge = Bridge { up: true, mtu: Some(9000), stp: 1, forward_delay: 1500, ports };
        assert_eq!(read("br0"), Interface::Bridge(bridge));
        let bare = Bridge { up: false, mtu: None, stp: 0, forward_delay: 1500, ports: vec![] };
        assert_eq!(read("br1"), Interface::Bridge(bare));
        assert_eq!(read("eth0"), Interface::Other);
        assert_eq!(read("br9"), Interface::Missing);
    }
}
