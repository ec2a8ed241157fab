//! `SnapshotName`: the name of a snapshot within its VM.

use std::{fmt, str::FromStr};

use jiff::Timestamp;

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// 1 to 64 of letters, digits, `.`, `_` and `-`, beginning with a letter or digit. A name becomes
/// part of file names beside the disk, `root@NAME.qcow2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The maximum length in bytes.
    pub const MAX: usize = 64;
    /// The prefix of the snapshots that a schedule creates, and that `prune` may delete.
    pub const AUTO: &'static str = "auto-";
    /// The prefix of the snapshots that a rollback creates.
    pub const BEFORE_ROLLBACK: &'static str = "before-rollback-";

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the default name of a snapshot: the time in UTC, with `-` for `:`.
    pub fn of_time(now: Timestamp) -> Self {
        Self(compact(now))
    }

    /// Returns the name of the snapshot that keeps the present before a rollback.
    pub fn before_rollback(now: Timestamp) -> Self {
        Self(format!("{}{}", Self::BEFORE_ROLLBACK, compact(now)))
    }

    /// Returns true if qvm creates snapshots with this prefix itself.
    pub fn is_reserved(&self) -> bool {
        [Self::AUTO, Self::BEFORE_ROLLBACK].iter().any(|prefix| self.0.starts_with(prefix))
    }
}

/// `2026-11-29T14-05-00Z`.
fn compact(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
}

impl FromStr for SnapshotName {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let ok = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= Self::MAX
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if !ok {
            return Err(Refused::new(format!(
                "`{}` is not a valid snapshot name: use 1 to {} letters, digits, `.`, `_` and \
                 `-`, beginning with a letter or digit",
                shown(text),
                Self::MAX
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

serde_by_text!(SnapshotName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_name_parts() {
        for name in ["a", "2026-11-29T14-05-00Z", "before.upgrade_2", &"x".repeat(64)] {
            assert_eq!(name.parse::<SnapshotName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "-a", "_a", "a/b", "a b", "a@b", "ä", "a\n", &"x".repeat(65)] {
            assert!(name.parse::<SnapshotName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn default_name_is_the_time() {
        let now: Timestamp = "2026-11-29T14:05:00.75Z".parse().unwrap();
        assert_eq!(SnapshotName::of_time(now).as_str(), "2026-11-29T14-05-00Z");
        let kept = SnapshotName::before_rollback(now);
        assert_eq!(kept.as_str(), "before-rollback-2026-11-29T14-05-00Z");
        for name in [SnapshotName::of_time(now), kept.clone()] {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        assert!(kept.is_reserved() && !SnapshotName::of_time(now).is_reserved());
    }
}
