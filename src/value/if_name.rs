//! `IfName`: the name of a network interface.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// What the kernel takes as an interface's name (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes,
/// no white space, `/` or `:`, not `.` or `..`. `%` is refused too: the kernel would read a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The longest name: `IFNAMSIZ` (16, linux/if.h) less the terminating NUL.
    pub const MAX: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let refuse = |why: String| Refused::new(format!("`{}` {why}", shown(text)));
        if text.len() > Self::MAX {
            return Err(refuse(format!(
                "has {} bytes; an interface's name has at most {}",
                text.len(),
                Self::MAX
            )));
        }
        let graphic = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if text.is_empty() || !graphic || text == "." || text == ".." {
            return Err(refuse(
                "is not an interface's name: use printable ASCII without spaces, `/`, `:` and `%`"
                    .into(),
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_by_text!(IfName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_and_refuses() {
        for text in ["br0", "vmbr0.30", "qvm-web_lan", "123456789012345"] {
            assert_eq!(text.parse::<IfName>().unwrap().as_str(), text);
        }
        for text in ["", ".", "..", "a b", "a/b", "a:1", "tap%d", "br\n", "bär", "1234567890123456"]
        {
            assert!(text.parse::<IfName>().is_err(), "{text:?} was taken");
        }
    }
}
