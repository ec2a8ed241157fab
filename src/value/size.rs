//! `Size`: an amount of memory or disk, in bytes.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A number of bytes, written with a binary unit as in QEMU's `-m 4G` and systemd's `MemoryMax=4G`.
/// `4GB` is refused: read as decimal it would be 295 MB less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// 1024² bytes.
    pub const MIB: u64 = 1 << 20;
    /// 1024³ bytes.
    pub const GIB: u64 = 1 << 30;

    /// Returns a size of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns a size of `mib` MiB; `None` if it exceeds 2^64 bytes.
    pub fn from_mib(mib: u64) -> Option<Self> {
        mib.checked_mul(Self::MIB).map(Self)
    }

    /// Returns a size of `gib` GiB; `None` if it exceeds 2^64 bytes.
    pub fn from_gib(gib: u64) -> Option<Self> {
        gib.checked_mul(Self::GIB).map(Self)
    }
}

impl FromStr for Size {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let refuse = |why: &str| Refused::new(format!("`{}` is not a size: {why}", shown(text)));
        let allowed = "write a whole number and one of K, M, G, T, such as `4G`";
        let shift = match unit {
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            "KB" | "MB" | "GB" | "TB" | "kB" => {
                let binary = unit.trim_end_matches('B').to_uppercase();
                return Err(refuse(&format!(
                    "`{unit}` is ambiguous; write `{number}{binary}`, which uses powers of 1024"
                )));
            }
            _ => return Err(refuse(allowed)),
        };
        let number: u64 = number.parse().map_err(|_| refuse(allowed))?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| refuse("it exceeds 2^64 bytes"))
    }
}

/// Displays the largest exact unit, such as `8G` or `1536M`, or bytes without a unit.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = [("T", 40), ("G", 30), ("M", 20), ("K", 10)]
            .into_iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match exact {
            Some((unit, shift)) => f.pad(&format!("{}{unit}", self.0 >> shift)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

serde_by_text!(Size);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in
            [("4G", 4 << 30), ("4GiB", 4 << 30), ("512M", 512 << 20), ("1k", 1024), ("2T", 2 << 40)]
        {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn ambiguous_or_invalid_text_is_refused() {
        for text in
            ["", "G", "4", "4.5G", "-4G", "4 G", "4X", "4GB", "99999999999999T", "4Gi", "४G"]
        {
            assert!(text.parse::<Size>().is_err(), "{text:?} was accepted");
        }
        let message = "4GB".parse::<Size>().unwrap_err().to_string();
        assert_eq!(
            message,
            "`4GB` is not a size: `GB` is ambiguous; write `4G`, which uses powers of 1024"
        );
    }

    proptest! {
        #[test]
        fn display_round_trips(mib in 1u64..1 << 40) {
            let size = Size::from_mib(mib).unwrap();
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Size>();
        }
    }
}
