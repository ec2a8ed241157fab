//! `MacAddr`: the MAC address of a NIC.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A unicast MAC address. Parsed in upper or lower case, displayed in lower case with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The locally administered prefix that QEMU and libvirt use for KVM guests.
    pub const QEMU_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

    /// Returns the address with QEMU's prefix and these last three bytes.
    pub const fn local(tail: [u8; 3]) -> Self {
        let [a, b, c] = Self::QEMU_PREFIX;
        Self([a, b, c, tail[0], tail[1], tail[2]])
    }

    /// Returns the six bytes in network order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let refuse = |why: &str| Refused::new(format!("`{}` {why}", shown(text)));
        let not =
            "is not a MAC address: write six pairs of hex digits, such as `52:54:00:12:34:56`";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(|| refuse(not))?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse(not));
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse(not))?;
        }
        if parts.next().is_some() {
            return Err(refuse(not));
        }
        if bytes[0] & 1 == 1 {
            return Err(refuse(
                "is a multicast address; the first byte of a NIC's address must be \
                even",
            ));
        }
        if bytes == [0; 6] {
            return Err(refuse(
                "is not a usable address; omit `mac` to let qvm generate a stable \
                one",
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

serde_by_text!(MacAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_both_cases_and_displays_lower_case() {
        let mac: MacAddr = "52:54:00:AB:cd:0F".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(MacAddr::local([1, 2, 3]).to_string(), "52:54:00:01:02:03");
    }

    #[test]
    fn invalid_text_is_refused() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "52:54:00:12:34:5",
            "52:54:00:12:34:+5",
            "52:54:00:12:34:gg",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text:?} was accepted");
        }
    }
}
