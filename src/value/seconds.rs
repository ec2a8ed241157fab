//! `Seconds`: how long something may take.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::refused::Refused;

/// Whole seconds, from 1 to one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Seconds(u32);

impl Seconds {
    /// The longest time: one day.
    pub const MAX: u32 = 86_400;

    /// So many seconds, from 1 to `MAX`; a constant out of that range does not compile.
    pub const fn new(seconds: u32) -> Self {
        assert!(seconds >= 1 && seconds <= Self::MAX);
        Self(seconds)
    }

    /// The number of seconds.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The same as a `Duration`.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl TryFrom<i64> for Seconds {
    type Error = Refused;

    fn try_from(seconds: i64) -> Result<Self, Refused> {
        u32::try_from(seconds).ok().filter(|s| (1..=Self::MAX).contains(s)).map(Self).ok_or_else(
            || {
                Refused::new(format!(
                    "{seconds} is out of range: it goes from 1 to {} seconds",
                    Self::MAX
                ))
            },
        )
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        i64::deserialize(from)?.try_into().map_err(de::Error::custom)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_a_second_to_a_day() {
        assert_eq!(Seconds::try_from(90).unwrap().duration(), Duration::from_secs(90));
        for seconds in [-1, 0, 86_401, i64::MAX, i64::MIN] {
            assert!(Seconds::try_from(seconds).is_err(), "{seconds} was taken");
        }
    }
}
