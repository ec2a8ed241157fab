//! `UidRange`: the UIDs that qvm assigns to VMs.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A contiguous range of UIDs; both ends are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// The lowest UID that is neither root nor a system account (login.defs(5), `UID_MIN`).
    pub const MIN: u32 = 1000;
    /// `nobody` (the kernel's overflow UID), and -1 in 16 and 32 bits, which system calls interpret
    /// as "no ID".
    const SPECIAL: [u32; 3] = [65_534, 65_535, u32::MAX];

    /// Returns true if a VM may run with this UID.
    pub fn is_assignable(uid: u32) -> bool {
        uid >= Self::MIN && !Self::SPECIAL.contains(&uid)
    }

    /// Returns the first UID.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// Returns the last UID.
    pub const fn last(self) -> u32 {
        self.last
    }

    /// Returns true if the range contains this UID.
    pub const fn contains(self, uid: u32) -> bool {
        self.first <= uid && uid <= self.last
    }
}

/// A part of the range that systemd does not use (systemd's docs/UIDS-GIDS.md: 1879048192 to
/// 2147352575).
impl Default for UidRange {
    fn default() -> Self {
        Self { first: 1_900_000_000, last: 1_900_065_535 }
    }
}

impl FromStr for UidRange {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let refuse = |why: &str| Refused::new(format!("`{}` {why}", shown(text)));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits)
        };
        let ends = text.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)));
        let Some((first, last)) = ends else {
            return Err(refuse(
                "is not a range of UIDs: write the first and the last, such as \
                 `1900000000-1900065535`",
            ));
        };
        let range = Self { first, last };
        if last < first {
            return Err(refuse("ends before it begins"));
        }
        if first < Self::MIN {
            return Err(refuse("begins below 1000: these UIDs are root and system accounts"));
        }
        match Self::SPECIAL.into_iter().find(|uid| range.contains(*uid)) {
            Some(uid) => Err(refuse(&format!("contains {uid}, which is a reserved UID"))),
            None => Ok(range),
        }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.first, self.last))
    }
}

serde_by_text!(UidRange);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_included() {
        let range: UidRange = "1000-1000".parse().unwrap();
        assert_eq!((range.first(), range.last()), (1000, 1000));
        assert!(range.contains(1000) && !range.contains(1001) && !range.contains(999));
        let default = UidRange::default();
        assert_eq!(default.to_string().parse(), Ok(default));
    }

    #[test]
    fn reserved_uids_are_refused() {
        for (text, why) in [
            ("", "is not a range"),
            ("1000", "is not a range"),
            ("1000-", "is not a range"),
            ("+1000-2000", "is not a range"),
            ("1000 - 2000", "is not a range"),
            ("1000-4294967296", "is not a range"),
            ("2000-1000", "ends before it begins"),
            ("999-2000", "begins below 1000"),
            ("0-2000", "begins below 1000"),
            ("60000-65534", "contains 65534"),
            ("65535-65540", "contains 65535"),
            ("65536-4294967295", "contains 4294967295"),
        ] {
            let refused = text.parse::<UidRange>().unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
