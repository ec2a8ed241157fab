//! Notes about guest addresses outside QEMU's user-mode network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::spec::{Link, Nic};

/// The networks of QEMU's user-mode network (`net_slirp_init`): 10.0.2.0/24 and fec0::/64.
const V4: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 0, 2, 0), 24);
const V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 64);

/// Returns a note for each NIC in the user-mode network with an `ip` of another network.
pub fn notes(nics: &[Nic]) -> Vec<String> {
    let of = |nic: &Nic| {
        let (ip, name) = (nic.ip?, &nic.name);
        let is_user = matches!(nic.link, Link::User { .. });
        (is_user && !is_inside(ip.address())).then(|| {
            let (v4, v6) = (format!("{}/{}", V4.0, V4.1), format!("{}/{}", V6.0, V6.1));
            format!(
                "`ip` {ip} of NIC `{name}` is not in the user-mode network {v4} or {v6}: the guest \
                 has no connection; set `bridge`, or remove `ip` to use DHCP"
            )
        })
    };
    nics.iter().filter_map(of).collect()
}

fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let host = 32 - V4.1;
            address.to_bits() >> host == V4.0.to_bits() >> host
        }
        IpAddr::V6(address) => {
            let host = 128 - V6.1;
            address.to_bits() >> host == V6.0.to_bits() >> host
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec;

    #[test]
    fn only_addresses_outside_are_noted() {
        for (text, noted) in [
            ("vcpu = 1\n", false),
            ("ip = \"10.0.2.20/24\"\n", false),
            ("ip = \"fec0::20/64\"\n", false),
            ("ip = \"192.168.1.5/24\"\n", true),
            ("ip = \"10.0.3.20/16\"\n", true),
            ("ip = \"fd00::5/64\"\n", true),
            ("ip = \"192.168.1.5/24\"\nbridge = \"br0\"\n", false),
            ("bridge = \"br0\"\n[nic.lan]\nip = \"192.168.1.5/24\"\n", true),
        ] {
            let name = "web".parse().unwrap();
            let file = Path::new("/v/web.toml");
            let vm = spec::read(&name, file, text, &mut |_| Ok(vec![])).unwrap();
            assert_eq!(notes(&vm.nics).len(), usize::from(noted), "{text}");
        }
    }
}
