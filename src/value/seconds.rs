//! `Seconds`: a duration in whole seconds.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::refused::Refused;

/// 1 to 86400 seconds (one day).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Seconds(u32);

impl Seconds {
    /// The longest duration, in seconds: one day.
    pub const MAX: u32 = 86_400;

    /// Returns a duration of 1 to `MAX` seconds; a constant outside the range does not compile.
    pub const fn new(seconds: u32) -> Self {
        assert!(seconds >= 1 && seconds <= Self::MAX);
        Self(seconds)
    }

    /// Returns the number of seconds.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the value as a `Duration`.
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
                    "{seconds} is out of range: the range is 1 to {} seconds",
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
    fn accepts_a_second_to_a_day() {
        assert_eq!(Seconds::try_from(90).unwrap().duration(), Duration::from_secs(90));
        for seconds in [-1, 0, 86_401, i64::MAX, i64::MIN] {
            assert!(Seconds::try_from(seconds).is_err(), "{seconds} was accepted");
        }
    }
}
