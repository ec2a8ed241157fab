//! `UidRange`: user ids that qvm may give to VMs.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// User ids without a gap, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// The lowest that is neither root nor an account of the system's (login.defs(5), `UID_MIN`).
    pub const MIN: u32 = 1000;
    /// `nobody` (the kernel's overflow id), and -1 in 16 and 32 bits, which system calls take for "no id".
    const SPECIAL: [u32; 3] = [65_534, 65_535, u32::MAX];

    /// Whether an id is one that any VM may have.
    pub fn may_be_given(uid: u32) -> bool {
        uid >= Self::MIN && !Self::SPECIAL.contains(&uid)
    }

    /// The first of them.
    pub const fn first(self) -> u32 {
        self.first
    }

    /// The last of them.
    pub const fn last(self) -> u32 {
        self.last
    }

    /// Whether one is among them.
    pub const fn contains(self, uid: u32) -> bool {
        self.first <= uid && uid <= self.last
    }
}

/// In the range that systemd leaves to others (systemd's docs/UIDS-GIDS.md: 1879048192 to 2147352575 is unused).
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
                "is not a range of user ids: write the first and the last, as in `1900000000-1900065535`",
            ));
        };
        let range = Self { first, last };
        if last < first {
            return Err(refuse("ends before it begins"));
        }
        if first < Self::MIN {
            return Err(refuse("begins below 1000, where root and the system's accounts are"));
        }
        match Self::SPECIAL.into_iter().find(|uid| range.contains(*uid)) {
            Some(uid) => Err(refuse(&format!("has {uid} in it, which is nobody's own"))),
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
    fn both_ends_belong_to_it() {
        let range: UidRange = "1000-1000".parse().unwrap();
        assert_eq!((range.first(), range.last()), (1000, 1000));
        assert!(range.contains(1000) && !range.contains(1001) && !range.contains(999));
        let default = UidRange::default();
        assert_eq!(default.to_string().parse(), Ok(default));
    }

    #[test]
    fn what_is_somebody_elses_is_refused() {
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
            ("60000-65534", "has 65534 in it"),
            ("65535-65540", "has 65535 in it"),
            ("65536-4294967295", "has 4294967295 in it"),
        ] {
            let refused = text.parse::<UidRange>().unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
