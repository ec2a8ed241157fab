//! `CpuWeight`: a VM's share of CPU time when the host's CPUs are contended.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::refused::Refused;

/// cgroup v2 `cpu.weight`: 1 to 10000, default 100 (Documentation/admin-guide/cgroup-v2.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CpuWeight(u16);

impl CpuWeight {
    /// The smallest weight.
    pub const MIN: u16 = 1;
    /// The largest weight.
    pub const MAX: u16 = 10_000;

    /// Returns the weight, from [`Self::MIN`] to [`Self::MAX`].
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for CpuWeight {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<i64> for CpuWeight {
    type Error = Refused;

    fn try_from(weight: i64) -> Result<Self, Refused> {
        u16::try_from(weight)
            .ok()
            .filter(|w| (Self::MIN..=Self::MAX).contains(w))
            .map(Self)
            .ok_or_else(|| {
                Refused::new(format!(
                    "{weight} is not a CPU weight: the range is 1 to 10000, the default is 100"
                ))
            })
    }
}

impl<'de> Deserialize<'de> for CpuWeight {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        i64::deserialize(from)?.try_into().map_err(de::Error::custom)
    }
}

impl fmt::Display for CpuWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_the_kernels_range() {
        for weight in [1, 100, 10_000] {
            assert_eq!(i64::from(CpuWeight::try_from(weight).unwrap().get()), weight);
        }
        for weight in [i64::MIN, -1, 0, 10_001, 65_536 + 100, i64::MAX] {
            assert!(CpuWeight::try_from(weight).is_err(), "{weight} was accepted");
        }
    }
}
