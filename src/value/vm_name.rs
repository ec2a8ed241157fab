//! `VmName`: the name of a VM, which is also a file name, a unit instance and the default hostname
//! of the guest.

use std::{fmt, path::Path, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// A DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9` and `-`, neither beginning nor ending with `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

impl VmName {
    /// The maximum length in bytes (RFC 1123, 2.1: a label has at most 63 octets).
    pub const MAX: usize = 63;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let found = shown(text);
        if text.is_empty() {
            return Err(Refused::new("a VM name must not be empty"));
        }
        if text.len() > Self::MAX {
            return Err(Refused::new(format!(
                "`{found}` has {} bytes; a VM name has at most {}",
                text.len(),
                Self::MAX
            )));
        }
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !text.chars().all(|c| letter(c) || c == '-')
            || text.starts_with('-')
            || text.ends_with('-')
        {
            return Err(Refused::new(format!(
                "`{found}` is not a VM name: use a-z, 0-9 and `-`, with a letter or digit at both \
                 ends"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<Path> for VmName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

serde_by_text!(VmName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_dns_labels() {
        for name in ["a", "web", "db-1", "0", &"x".repeat(63)] {
            assert_eq!(name.parse::<VmName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn path_and_unit_characters_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "A",
            "a b",
            "a,b",
            "a\"b",
            "a\nb",
            "-a",
            "a-",
            "ä",
            "a\0",
            "a@b",
            "a.toml",
            &"x".repeat(64),
            &"x".repeat(300),
        ] {
            assert!(name.parse::<VmName>().is_err(), "{name:?} was accepted");
        }
    }

    #[test]
    fn hostile_name_is_escaped_and_shortened() {
        let message = "x\n\u{1b}[2J".parse::<VmName>().unwrap_err().to_string();
        assert!(message.starts_with("`x\\n\\u{1b}[2J` is not a VM name"), "{message}");
        assert!("y".repeat(300).parse::<VmName>().unwrap_err().to_string().len() < 200);
    }
}
