//! `CpuList`: CPUs of the host, in the list format of taskset(1) and the kernel.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A list of CPU numbers, such as `0`, `2-3` or `0,4-7`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u16>);

impl CpuList {
    /// The largest CPU number: `cpu_set_t` of the C library has 1024 bits (CPU_SET(3)).
    pub const MAX: u16 = 1023;

    /// Returns the numbers in ascending order, without duplicates.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }
}

impl FromStr for CpuList {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let number = |text: &str| {
            let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u16>().ok().filter(|number| digits && *number <= Self::MAX)
        };
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(number(first)?..=number(last)?).filter(|range| !range.is_empty())
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(|ranges| Self(ranges.into_iter().flatten().collect())).ok_or_else(|| {
            Refused::new(format!(
                "`{}` is not a list of CPUs: write for example `2`, `0-3` or `0,4-7`; the largest \
                 number is {}",
                shown(text),
                Self::MAX
            ))
        })
    }
}

/// Displays the shortest form: adjacent numbers as a range.
impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1) {
                last = next;
            }
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

serde_by_text!(CpuList);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses_taskset_lists_and_displays_shortest() {
        for (text, shown) in [
            ("0", "0"),
            ("2-3", "2-3"),
            ("0,4-7", "0,4-7"),
            ("3,1,2,1-3", "1-3"),
            ("1023", "1023"),
            ("5-5,007", "5,7"),
        ] {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), shown);
        }
        for text in
            ["", ",", "1,", "-1", "1-", "3-2", "1024", "0-1024", "a", " 1", "+1", "0x1", "1--2"]
        {
            let refused = text.parse::<CpuList>().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("`{text}` is not a list of CPUs")), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_lists_round_trip(text in "[0-9,-]{0,12}|\\PC{0,8}") {
            if let Ok(list) = text.parse::<CpuList>() {
                prop_assert!(list.iter().count() > 0);
                prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
            }
        }
    }
}
