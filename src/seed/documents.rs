//! The NoCloud seed for cloud-init: its three documents and the CD image.
//!
//! cloud-init parses YAML 1.1, in which a bare `52:54:00:12:34:56` is a number and a bare `on` is a
//! boolean, so all texts are written in double quotes.

use std::{fmt::Write as _, net::IpAddr};

use super::iso9660;
use crate::store::identity::Identity;
use crate::{
    spec::{CloudInit, Nic, Vm},
    value::MacAddr,
};

/// The volume label for cloud-init's datasource NoCloud.
pub const LABEL: &str = "cidata";

/// The content of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// `meta-data`: the identity of the guest.
    pub meta_data: String,
    /// `user-data`: the configuration of the guest. Text, or gzip if the operator's file is gzip.
    pub user_data: Vec<u8>,
    /// `network-config`, version 2: the network configuration.
    pub network_config: String,
}

/// Returns the documents; `None` without `[cloudInit]`.
pub fn documents(vm: &Vm, identity: &Identity) -> Option<Documents> {
    let cloud_init = vm.cloud_init.as_ref()?;
    let kept = identity.hostname.as_deref().unwrap_or(vm.name.as_str());
    let hostname = cloud_init.hostname.as_deref().unwrap_or(kept);
    Some(Documents {
        meta_data: format!(
            "instance-id: {}\nlocal-hostname: {}\n",
            quoted(&identity.instance_id),
            quoted(hostname)
        ),
        user_data: match &cloud_init.user_data {
            Some(own) => own.bytes.clone(),
            None => user_data(cloud_init, hostname).into_bytes(),
        },
        network_config: network_config(&vm.nics, identity),
    })
}

/// Returns the CD image with the documents.
///
/// # Errors
/// The user-data has 4 GiB or more.
pub fn image(documents: &Documents) -> Result<Vec<u8>, iso9660::Error> {
    iso9660::image(
        LABEL,
        &[
            ("meta-data", documents.meta_data.as_bytes()),
            ("network-config", documents.network_config.as_bytes()),
            ("user-data", &documents.user_data),
        ],
    )
}

/// Returns the user-data of the simple keys.
///
/// The account is the image's default user, renamed to `user` if set: it has the groups and the
/// shell that the distribution gives to its first user (`/bin/bash` does not exist everywhere), and
/// there is no second account. A mapping `user` is merged over that of the image since cloud-init
/// 0.7.5.
fn user_data(cloud_init: &CloudInit, hostname: &str) -> String {
    let mut out = format!("#cloud-config\nhostname: {}\n", quoted(hostname));
    // The password is for the serial console; over the network only keys are accepted.
    out.push_str("ssh_pwauth: false\n");
    if cloud_init.user.is_some() || cloud_init.password_hash.is_some() {
        out.push_str("user:\n");
    }
    if let Some(user) = &cloud_init.user {
        line(&mut out, 1, "name", user);
        line(&mut out, 1, "sudo", "ALL=(ALL) NOPASSWD:ALL");
        if cloud_init.password_hash.is_none() {
            out.push_str("  lock_passwd: true\n");
        }
    }
    if let Some(hash) = &cloud_init.password_hash {
        out.push_str("  lock_passwd: false\n");
        // Not `passwd`, which applies only to new accounts and not to one of the image; not
        // `password`, for which older versions interpret a yescrypt hash (`$y$`) as the password
        // itself.
        line(&mut out, 1, "hashed_passwd", hash);
    }
    if !cloud_init.ssh_authorized_keys.is_empty() {
        out.push_str("ssh_authorized_keys:\n");
        for key in &cloud_init.ssh_authorized_keys {
            item(&mut out, 1, key);
        }
    }
    out
}

/// Returns the network configuration; NICs are matched by MAC address.
fn network_config(nics: &[Nic], identity: &Identity) -> String {
    let known: Vec<(&Nic, MacAddr)> = nics
        .iter()
        .filter_map(|nic| Some((nic, nic.mac.or_else(|| identity.macs.get(&nic.name).copied())?)))
        .collect();
    if known.is_empty() {
        // Explicit: without the document cloud-init would try DHCP on all interfaces.
        return "version: 2\nethernets: {}\n".to_owned();
    }
    let mut out = String::from("version: 2\nethernets:\n");
    for (nic, mac) in known {
        ethernet(&mut out, nic, mac);
    }
    out
}

/// Adds one NIC. Without `set-name`, interfaces keep the names that the guest gives them, and no
/// rename can fail.
fn ethernet(out: &mut String, nic: &Nic, mac: MacAddr) {
    let _ = writeln!(out, "  {}:", quoted(nic.name.as_str()));
    out.push_str("    match:\n");
    line(out, 3, "macaddress", &mac.to_string());
    match nic.ip {
        Some(ip) => {
            out.push_str("    addresses:\n");
            item(out, 3, &ip.to_string());
            if ip.address().is_ipv6() {
                // With a configured gateway, router advertisements would add a second address and a
                // second default route; without one they are the only source of routes.
                let _ = writeln!(out, "    accept-ra: {}", nic.gateway.is_none());
            }
        }
        None => {
            out.push_str("    dhcp4: true\n");
            // The default identifier of systemd-networkd derives from /etc/machine-id, which a
            // copied disk shares with its origin, so both would get the same lease (systemd #9609).
            // Renderers other than netplan ignore the key; their clients use the MAC address
            // anyway.
            line(out, 2, "dhcp-identifier", "mac");
        }
    }
    if let Some(gateway) = nic.gateway {
        // `to: default` raises a ValueError in cloud-init before 22.3 outside of netplan
        // (canonical/cloud-init #3988). `gateway4` is deprecated by netplan since 0.103, and by
        // cloud-init since 23.1, which warns about it outside of netplan (#4031). The prefix of
        // length zero works with every netplan and every other renderer except two old ones:
        // ifupdown, which needs route(8) in the guest (#6250; Debian 11), and `::/0` before 23.1,
        // which becomes `::/64` (#1973).
        let to = match gateway {
            IpAddr::V4(_) => "0.0.0.0/0",
            IpAddr::V6(_) => "::/0",
        };
        out.push_str("    routes:\n");
        let _ = writeln!(out, "      - to: {}", quoted(to));
        line(out, 4, "via", &gateway.to_string());
    }
    if !nic.dns.is_empty() {
        out.push_str("    nameservers:\n      addresses:\n");
        for server in &nic.dns {
            item(out, 4, &server.to_string());
        }
    }
    if let Some(mtu) = nic.mtu {
        let _ = writeln!(out, "    mtu: {mtu}");
    }
}

/// Appends `KEY: "TEXT"`, indented.
fn line(out: &mut String, depth: usize, key: &str, text: &str) {
    let _ = writeln!(out, "{:1$}{key}: {2}", "", depth * 2, quoted(text));
}

/// Appends `- "TEXT"`, indented.
fn item(out: &mut String, depth: usize, text: &str) {
    let _ = writeln!(out, "{:1$}- {2}", "", depth * 2, quoted(text));
}

/// Returns a YAML double-quoted scalar on one line. Letters, digits and printable ASCII are
/// unchanged; other characters are escaped, since YAML 1.1 forbids some of them and treats others
/// as line breaks.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        let _ = match (c, u32::from(c)) {
            ('"' | '\\', _) => write!(out, "\\{c}"),
            ('\n', _) => write!(out, "\\n"),
            ('\t', _) => write!(out, "\\t"),
            (' '..='~', _) => write!(out, "{c}"),
            (_, code @ 0..=0xff) if !c.is_alphanumeric() => write!(out, "\\x{code:02x}"),
            (_, 0..=0xffff) if c.is_alphanumeric() => write!(out, "{c}"),
            (_, code @ 0..=0xffff) => write!(out, "\\u{code:04x}"),
            (_, code) => write!(out, "\\U{code:08x}"),
        };
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ambiguous_yaml_texts_remain_strings() {
        for text in [
            "",
            " ",
            "on",
            "no",
            "~",
            "null",
            "1e3",
            "0o17",
            "52:54:00:12:34:56",
            "2026-01-01",
            "a: b",
            "- a",
            "# a",
            "a #b",
            "'",
            "\"",
            "\\",
            "\\n",
            "a\nb",
            "a\r\nb",
            "\t",
            "{}",
            "[]",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%",
            "@",
            "`",
            "---",
            "...",
            "\u{0}",
            "\u{1b}[2J",
            "\u{7f}",
            "\u{85}",
            "\u{a0}",
            "\u{2028}",
            "\u{feff}",
            "\u{fffe}",
            "ä",
            "日本",
            "😀",
        ] {
            let line = quoted(text);
            assert!(!line.contains('\n'));
            assert_eq!(
                serde_norway::from_str::<serde_norway::Value>(&line).unwrap(),
                text,
                "{line}"
            );
        }
        assert_eq!(quoted("ä\u{85}\u{2028}😀\u{1}"), r#""ä\x85\u2028\U0001f600\x01""#);
    }

    proptest! {
        #[test]
        fn every_text_round_trips(text in any::<String>()) {
            let line = quoted(&text);
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert_eq!(serde_norway::from_str::<String>(&line).unwrap(), text);
        }
    }
}
