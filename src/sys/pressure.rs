//! Pressure stall information of a cgroup (Documentation/accounting/psi.rst).

use std::{fs, path::Path};

/// The stall times of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Seconds in which at least one task was stalled.
    pub some: f64,
    /// Seconds in which all tasks were stalled.
    pub full: f64,
    /// The percentage of the last ten seconds in which at least one task was stalled.
    pub some_avg10: f64,
}

/// The stall times of `cpu`, `memory` and `io`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// Waiting for a CPU.
    pub cpu: Pressure,
    /// Waiting for memory.
    pub memory: Pressure,
    /// Waiting for I/O.
    pub io: Pressure,
}

/// Reads the pressure of a cgroup, or of the host from `/proc/pressure`; `None` if the kernel has
/// no PSI.
pub fn of(directory: &Path) -> Option<Pressures> {
    let read = |name: &str| {
        let text = fs::read_to_string(directory.join(format!("{name}.pressure")));
        Some(parse(&text.or_else(|_| fs::read_to_string(directory.join(name))).ok()?))
    };
    Some(Pressures { cpu: read("cpu")?, memory: read("memory")?, io: read("io")? })
}

fn parse(text: &str) -> Pressure {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind));
    let value = |line: Option<&str>, key: &str| {
        let mut words = line?.split_whitespace();
        let number: f64 = words.find_map(|word| word.strip_prefix(key))?.parse().ok()?;
        // Rust also parses `inf` and `NaN`.
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    let (some, full) = (line("some "), line("full "));
    Pressure {
        some: value(some, "total=").unwrap_or_default() / 1e6,
        full: value(full, "total=").unwrap_or_default() / 1e6,
        some_avg10: value(some, "avg10=").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lines_are_parsed() {
        let text = "some avg10=1.25 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 \
            avg60=0.00 avg300=0.00 total=500000\n";
        assert_eq!(parse(text), Pressure { some: 2.5, full: 0.5, some_avg10: 1.25 });
        for nonsense in ["nonsense", "some avg10=NaN total=inf", "some avg10=-1 total=-5"] {
            assert_eq!(parse(nonsense), Pressure::default());
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(dir.path()), None);
        for name in ["cpu.pressure", "memory.pressure", "io"] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(of(dir.path()).unwrap().io.some, 2.5);
    }
}
