//! The module `br_netfilter`: the bridged frames that pass the packet filter (networking/bridge.rst
//! of the kernel).

use std::{fs, path::Path};

use crate::doctor::rules::Netfilter;

/// Returns its settings in this network namespace; `proc` is `/proc`. `None` if it is not loaded.
pub fn read(proc: &Path) -> Option<Netfilter> {
    let on = |name: &str| {
        let text = fs::read_to_string(proc.join("sys/net/bridge").join(name)).ok()?;
        Some(text.trim() != "0")
    };
    Some(Netfilter {
        ipv4: on("bridge-nf-call-iptables")?,
        ipv6: on("bridge-nf-call-ip6tables").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_or_not() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(read(proc.path()), None);
        let bridge = proc.path().join("sys/net/bridge");
        fs::create_dir_all(&bridge).unwrap();
        fs::write(bridge.join("bridge-nf-call-iptables"), "1\n").unwrap();
        assert_eq!(read(proc.path()), Some(Netfilter { ipv4: true, ipv6: false }));
        fs::write(bridge.join("bridge-nf-call-iptables"), "0\n").unwrap();
        fs::write(bridge.join("bridge-nf-call-ip6tables"), "1\n").unwrap();
        assert_eq!(read(proc.path()), Some(Netfilter { ipv4: false, ipv6: true }));
    }
}
