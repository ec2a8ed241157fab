//! `Cidr`: an IP address with the prefix length of its network.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// The address of a host with its network, such as `192.168.97.15/24` or `fd00::15/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Returns the host's address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Returns the prefix length in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `other` is in the same network.
    pub fn contains(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let refuse = |why: String| Refused::new(format!("`{}` {why}", shown(text)));
        let Some((address, prefix)) = text.split_once('/') else {
            return Err(match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => refuse(format!(
                    "has no prefix length: write `{text}/24` if that is its \
                        network"
                )),
                Ok(IpAddr::V6(_)) => refuse(format!(
                    "has no prefix length: write `{text}/64` if that is its \
                        network"
                )),
                Err(_) => refuse("is not an address: write for example `192.168.1.10/24`".into()),
            });
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| refuse("is not an address: write for example `192.168.1.10/24`".into()))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix =
            prefix.parse::<u8>().ok().filter(|p| (1..=longest).contains(p)).ok_or_else(|| {
                refuse(format!("has an invalid prefix length: the range is 1 to {longest}"))
            })?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(refuse("cannot be the address of a guest".into()));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.prefix))
    }
}

serde_by_text!(Cidr);

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn contains_addresses_of_its_network() {
        assert!(cidr("192.168.97.15/24").contains("192.168.97.1".parse().unwrap()));
        assert!(!cidr("192.168.97.15/24").contains("192.168.98.1".parse().unwrap()));
        assert!(cidr("10.0.0.1/32").contains("10.0.0.1".parse().unwrap()));
        assert!(!cidr("10.0.0.1/32").contains("10.0.0.2".parse().unwrap()));
        assert!(cidr("fd00::15/64").contains("fd00::1".parse().unwrap()));
        assert!(!cidr("fd00::15/64").contains("192.168.97.1".parse().unwrap()));
    }

    #[test]
    fn missing_prefix_length_is_reported() {
        assert_eq!(
            "192.168.97.15".parse::<Cidr>().unwrap_err().to_string(),
            "`192.168.97.15` has no prefix length: write `192.168.97.15/24` if that is its network"
        );
    }

    #[test]
    fn invalid_text_is_refused() {
        for text in [
            "",
            "x/24",
            "10.0.0.1/0",
            "10.0.0.1/33",
            "10.0.0.1/",
            "10.0.0/24",
            "0.0.0.0/8",
            "127.0.0.1/8",
            "224.0.0.1/4",
            "::1/128",
            "fd00::1/129",
            "10.0.0.1/24/1",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?} was accepted");
        }
    }
}
