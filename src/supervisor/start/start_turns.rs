//! Whether a start waits for its turn, so that many starts at once do not overload the host.

/// CPU pressure of the last ten seconds, in percent, above which starts wait
/// (Documentation/accounting/psi.rst, `some avg10`).
pub const CPU: f64 = 60.0;
/// The same for disks.
pub const IO: f64 = 40.0;
/// The same for memory.
pub const MEMORY: f64 = 10.0;

/// The host at the time of a start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// `some avg10` of the CPUs, in percent; `None` without PSI.
    pub cpu: Option<f64>,
    /// The same of disks.
    pub io: Option<f64>,
    /// The same of memory.
    pub memory: Option<f64>,
    /// The VM waits for its turn already.
    pub queued: bool,
    /// How many other VMs are admitted and not running yet.
    pub starting: usize,
    /// The number of CPUs.
    pub cpus: usize,
}

/// Why a start waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// The host is under pressure.
    Pressed(&'static str, u8),
    /// As many VMs are being started as there are CPUs: their pressure is not visible yet.
    Many,
    /// Other starts wait already.
    Queue,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pressed(what, percent) => {
                write!(f, "the host is under pressure: {what} ({percent} % of the last 10 s)")
            }
            Self::Queue => f.write_str("other VMs wait before it"),
            Self::Many => f.write_str("other VMs are being started"),
        }
    }
}

/// Whether a start has to wait, and why. The only start never waits, whatever the pressure. Without
/// PSI none waits: no measurement would end the wait.
pub fn busy(seen: &Seen) -> Option<Busy> {
    let accounts =
        [("CPU", seen.cpu, CPU), ("disks", seen.io, IO), ("memory", seen.memory, MEMORY)];
    if accounts.iter().all(|(_, percent, _)| percent.is_none()) {
        return None;
    }
    if seen.starting >= seen.cpus.max(1) {
        return Some(Busy::Many);
    }
    if seen.starting == 0 && !seen.queued {
        return None;
    }
    let over = |(what, percent, bound): &(&'static str, Option<f64>, f64)| {
        percent.filter(|percent| percent > bound).map(|percent| Busy::Pressed(what, percent as u8))
    };
    accounts.iter().find_map(over)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Seen = Seen {
        cpu: Some(0.0),
        io: Some(0.0),
        memory: Some(0.0),
        queued: false,
        starting: 0,
        cpus: 4,
    };

    #[test]
    fn idle_host_starts_one_per_cpu() {
        assert_eq!(busy(&QUIET), None);
        assert_eq!(busy(&Seen { starting: 3, ..QUIET }), None);
        assert_eq!(busy(&Seen { starting: 4, ..QUIET }), Some(Busy::Many));
        assert_eq!(busy(&Seen { starting: 1, cpus: 0, ..QUIET }), Some(Busy::Many));
    }

    #[test]
    fn pressure_delays_parallel_starts() {
        for (seen, what) in [
            (Seen { cpu: Some(61.0), ..QUIET }, "CPU (61 %"),
            (Seen { io: Some(41.0), ..QUIET }, "disks (41 %"),
            (Seen { memory: Some(11.0), ..QUIET }, "memory (11 %"),
        ] {
            for seen in [Seen { starting: 1, ..seen }, Seen { queued: true, ..seen }] {
                assert!(busy(&seen).unwrap().to_string().contains(what), "{seen:?}");
            }
            assert_eq!(busy(&seen), None);
        }
        let at = Seen { cpu: Some(CPU), io: Some(IO), memory: Some(MEMORY), queued: true, ..QUIET };
        assert_eq!(busy(&at), None);
    }

    #[test]
    fn no_start_waits_without_psi() {
        let blind = Seen { cpu: None, io: None, memory: None, starting: 50, ..QUIET };
        assert_eq!(busy(&blind), None);
    }
}
