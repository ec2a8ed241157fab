//! `Operator`: an account of the host that may change a VM.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// An account by its name in the host's databases (nsswitch.conf(5)) or by its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// A user by name: `alice`.
    User(String),
    /// A user by number: `1000`.
    Uid(u32),
    /// All members of a group, by its name: `@admins`.
    Group(String),
    /// All members of a group, by its number: `@1000`.
    Gid(u32),
}

impl Operator {
    /// The maximum length of a user name in bytes (LOGIN_NAME_MAX of Linux, with the NUL).
    const MAX: usize = 255;
    /// `(uid_t) -1`, which setresuid(2) interprets as "unchanged".
    const NO_ID: u32 = u32::MAX;
}

impl FromStr for Operator {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let (name, group) = match text.strip_prefix('@') {
            Some(name) => (name, true),
            None => (text, false),
        };
        // Other databases than /etc/passwd allow more characters (`DOMAIN\user`, `user@realm`).
        // Refused are only characters that no name can contain (passwd(5)), or that suggest a list.
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',' | '/');
        if name.is_empty() || name.starts_with(['-', '+', '@']) || name.contains(odd) {
            return Err(Refused::new(format!(
                "`{}` is not a user or group: write `alice`, `1000`, or `@admins` for a group",
                shown(text)
            )));
        }
        if name.len() > Self::MAX {
            return Err(Refused::new(format!(
                "`{}` has {} bytes; a name has at most {}",
                shown(text),
                name.len(),
                Self::MAX
            )));
        }
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            let name = name.to_owned();
            return Ok(if group { Self::Group(name) } else { Self::User(name) });
        }
        match name.parse() {
            Ok(id) if id != Self::NO_ID => Ok(if group { Self::Gid(id) } else { Self::Uid(id) }),
            _ => Err(Refused::new(format!(
                "`{}` is out of range: the range is 0 to {}",
                shown(text),
                Self::NO_ID - 1
            ))),
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Uid(id) => id.fmt(f),
            Self::Group(name) => write!(f, "@{name}"),
            Self::Gid(id) => write!(f, "@{id}"),
        }
    }
}

serde_by_text!(Operator);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_by_name_and_by_number() {
        for (text, operator) in [
            ("alice", Operator::User("alice".into())),
            ("0", Operator::Uid(0)),
            ("4294967294", Operator::Uid(4_294_967_294)),
            ("@admins", Operator::Group("admins".into())),
            ("@1000", Operator::Gid(1000)),
            ("user@example.org", Operator::User("user@example.org".into())),
            ("@EXAMPLE\\admins", Operator::Group("EXAMPLE\\admins".into())),
            ("1a", Operator::User("1a".into())),
        ] {
            assert_eq!(text.parse::<Operator>().as_ref(), Ok(&operator));
            assert_eq!(operator.to_string(), text);
        }
    }

    #[test]
    fn invalid_account_names_are_refused() {
        for (text, why) in [
            ("", "not a user or group"),
            ("@", "not a user or group"),
            ("@@x", "not a user or group"),
            ("-x", "not a user or group"),
            ("alice bob", "not a user or group"),
            ("alice,bob", "not a user or group"),
            ("a:b", "not a user or group"),
            ("a\u{1b}b", "not a user or group"),
            ("4294967295", "out of range"),
            ("@99999999999", "out of range"),
            (&"x".repeat(256), "256 bytes"),
        ] {
            let refused = text.parse::<Operator>().unwrap_err().to_string();
            assert!(refused.contains(why), "{text:?}: {refused}");
        }
    }
}
