//! How long the processes of a cgroup were held up for want of something (Documentation/accounting/psi.rst).

use std::{fs, path::Path};

/// The account of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one was held up, in seconds.
    pub some: f64,
    /// All were at once, in seconds.
    pub full: f64,
    /// Of the last ten seconds, in percent, at least one was.
    pub some_avg10: f64,
}

/// The accounts of `cpu`, `memory` and `io`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressures {
    /// For want of a CPU.
    pub cpu: Pressure,
    /// For want of memory.
    pub memory: Pressure,
    /// For want of disks.
    pub io: Pressure,
}

/// Those of a cgroup, or of the whole host in `/proc/pressure`; `None` where the kernel keeps none.
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
        // Rust reads `inf` and `NaN` as well.
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
    fn the_kernels_lines() {
        let text = "some avg10=1.25 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000\n";
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
