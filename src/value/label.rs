//! `Label`: the name of a disk or a NIC within its VM, as in `[disk.data]`.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// 1 to 16 of `a-z`, `0-9` and `-`, beginning with a letter. It becomes part of QEMU's device ids
/// (which want a leading letter), of file names and of a virtio disk's serial number (20 bytes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl Label {
    /// The longest label.
    pub const MAX: usize = 16;
    /// What the flat keys `diskSizeG` and `[image]` describe.
    pub const ROOT: &'static str = "root";
    /// What the flat keys `mac`, `ip`, `bridge`, … describe.
    pub const NET: &'static str = "net";

    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The label of the first disk.
    pub fn root() -> Self {
        Self(Self::ROOT.to_owned())
    }

    /// The label of the first NIC.
    pub fn net() -> Self {
        Self(Self::NET.to_owned())
    }
}

impl FromStr for Label {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let ok = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= Self::MAX
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !ok {
            return Err(Refused::new(format!(
                "`{}` is not a name for a disk or a NIC: use 1 to {} of a-z, 0-9 and `-`, a letter first",
                shown(text),
                Self::MAX
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_by_text!(Label);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_and_refuses() {
        for text in ["root", "data-2", "a", "abcdefghijklmnop"] {
            assert_eq!(text.parse::<Label>().unwrap().as_str(), text);
        }
        for text in ["", "2data", "-a", "Data", "a_b", "a.b", "a/b", "abcdefghijklmnopq", "é"] {
            assert!(text.parse::<Label>().is_err(), "{text:?} was taken");
        }
    }
}
