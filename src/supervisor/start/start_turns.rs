//! Whether a start waits its turn, so that many at once, as after a boot of the host, do not bring it to its knees.

/// How much of the last ten seconds somebody waited for a CPU, a disk or memory, in percent (Documentation/accounting/psi.rst, `some
/// avg10`); from there on the host is pressed.
pub const CPU: f64 = 60.0;
/// The same for disks.
pub const IO: f64 = 40.0;
/// The same for memory: to wait for that is worse.
pub const MEMORY: f64 = 10.0;

/// What there is to be seen when a VM wants to start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// `some avg10` of the CPUs, in percent; none where the kernel keeps no account.
    pub cpu: Option<f64>,
    /// The same of disks.
    pub io: Option<f64>,
    /// The same of memory.
    pub memory: Option<f64>,
    /// The VM is one of those who wait for their turn.
    pub queued: bool,
    /// How many other VMs are on their way from admission to a QEMU that runs.
    pub starting: usize,
    /// How many CPUs there are.
    pub cpus: usize,
}

/// Why a start waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// The host is pressed for something.
    Pressed(&'static str, u8),
    /// As many VMs are being started as there are CPUs: what that does is not to be seen yet.
    Many,
    /// Others wait already.
    Queue,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pressed(what, percent) => {
                write!(f, "the host is pressed for {what} ({percent} % of the last 10 s)")
            }
            Self::Queue => f.write_str("others wait before it"),
            Self::Many => f.write_str("other VMs are being started"),
        }
    }
}

/// Whether a start has to wait, and why. Alone it never does, whatever the pressure: somebody wants it now. Without accounts it never
/// does either: for a delay that nobody measures there is no right length.
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
    fn a_host_that_is_not_pressed_starts_as_many_at_once_as_it_has_cpus() {
        assert_eq!(busy(&QUIET), None);
        assert_eq!(busy(&Seen { starting: 3, ..QUIET }), None);
        assert_eq!(busy(&Seen { starting: 4, ..QUIET }), Some(Busy::Many));
        assert_eq!(busy(&Seen { starting: 1, cpus: 0, ..QUIET }), Some(Busy::Many));
    }

    #[test]
    fn each_account_presses_who_is_not_alone() {
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
    fn without_accounts_nobody_waits() {
        let blind = Seen { cpu: None, io: None, memory: None, starting: 50, ..QUIET };
        assert_eq!(busy(&blind), None);
    }
}
