//! `Label`: the name of a disk or a NIC within its VM, as in `[disk.data]`.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// 1 to 16 of `a-z`, `0-9` and `-`, beginning with a letter. A label becomes part of QEMU's device
/// IDs (which must begin with a letter), of file names, and of a virtio disk's serial number (20
/// bytes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl Label {
    /// The maximum length in bytes.
    pub const MAX: usize = 16;
    /// The label of the disk that the flat keys `diskSizeG` and `[image]` describe.
    pub const ROOT: &'static str = "root";
    /// The label of the NIC that the flat keys `mac`, `ip`, `bridge`, … describe.
    pub const NET: &'static str = "net";

    /// Returns the label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the label of the first disk.
    pub fn root() -> Self {
        Self(Self::ROOT.to_owned())
    }

    /// Returns the label of the first NIC.
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
                "`{}` is not a valid disk or NIC name: use 1 to {} of a-z, 0-9 and `-`, beginning \
                 with a letter",
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
    fn accepts_only_short_lower_case_names() {
        for text in ["root", "data-2", "a", "abcdefghijklmnop"] {
            assert_eq!(text.parse::<Label>().unwrap().as_str(), text);
        }
        for text in ["", "2data", "-a", "Data", "a_b", "a.b", "a/b", "abcdefghijklmnopq", "é"] {
            assert!(text.parse::<Label>().is_err(), "{text:?} was accepted");
        }
    }
}
