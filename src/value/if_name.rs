//! `IfName`: the name of a network interface.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// An interface name that the kernel accepts (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes,
/// no white space, `/` or `:`, not `.` or `..`. `%` is refused too, because the kernel expands it
/// as a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The maximum length in bytes: `IFNAMSIZ` (16, linux/if.h) without the terminating NUL.
    pub const MAX: usize = 15;

    /// Returns the name as text.
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
                "has {} bytes; an interface name has at most {}",
                text.len(),
                Self::MAX
            )));
        }
        let graphic = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b));
        if text.is_empty() || !graphic || text == "." || text == ".." {
            return Err(refuse(
                "is not an interface name: use printable ASCII without spaces, `/`, `:` and `%`"
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
    fn accepts_only_kernel_interface_names() {
        for text in ["br0", "vmbr0.30", "qvm-web_lan", "123456789012345"] {
            assert_eq!(text.parse::<IfName>().unwrap().as_str(), text);
        }
        for text in ["", ".", "..", "a b", "a/b", "a:1", "tap%d", "br\n", "bär", "1234567890123456"]
        {
            assert!(text.parse::<IfName>().is_err(), "{text:?} was accepted");
        }
    }
}
