//! Restricts the capabilities (capabilities(7)) of a supervisor running as root, and of its
//! children.

use rustix::{
    io,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set,
        capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities,
    },
};

/// The capabilities that a supervisor keeps, and their purpose:
///
/// - `CHOWN`, `FOWNER`, `DAC_OVERRIDE`: disks and images of any owner; a disk is given to the UID
///   of its QEMU;
/// - `SETUID`, `SETGID`, `SETPCAP`: QEMU gets its own UID and drops the rest of this list;
/// - `KILL`: SIGKILL for QEMU as the last resort;
/// - `NET_ADMIN`: taps and bridge ports;
/// - `NET_BIND_SERVICE`: forwarded ports below 1024;
/// - `SYS_NICE`: CPU affinity of vCPU threads;
/// - `SYS_RESOURCE`: a negative `oomScoreAdjust`.
///
/// They are kept permanently: a guest reboot may launch another QEMU, a disk or NIC may be added,
/// weights may change.
pub const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_RESOURCE);

/// Drops all capabilities except [`KEPT`] for this thread and threads started later: call this
/// before starting threads. Adds none. Returns the remaining capabilities.
///
/// A program executed by root gets the bounding set, others get the ambient set: a supervisor keeps
/// its capabilities across re-execution.
///
/// # Errors
/// The kernel refuses. Having nothing to drop is no error.
pub fn cut() -> io::Result<CapabilitySet> {
    cut_to(KEPT)
}

fn cut_to(kept: CapabilitySet) -> io::Result<CapabilitySet> {
    let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
    let bounded = match effective.contains(CapabilitySet::SETPCAP) {
        true => bound(kept),
        false => Ok(()),
    };
    // Without inheritable capabilities there are no ambient ones (capabilities(7)); root needs
    // neither.
    let mut passed_on = CapabilitySet::empty();
    if !rustix::process::geteuid().is_root() {
        for capability in known().filter(|capability| inheritable.contains(*capability)) {
            if capability_is_in_ambient_set(capability)? {
                passed_on |= capability & kept;
            }
        }
    }
    let (effective, permitted) = (effective & kept, permitted & kept);
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: passed_on })?;
    bounded.map(|()| permitted)
}

/// Limits the bounding set, which is what root gets on exec.
fn bound(kept: CapabilitySet) -> io::Result<()> {
    // To remove one that is not in the set is no error.
    known()
        .filter(|capability| !kept.contains(*capability))
        .try_for_each(remove_capability_from_bounding_set)
}

/// Returns the capabilities of this kernel.
fn known() -> impl Iterator<Item = CapabilitySet> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    all.take_while(|capability| capability_is_in_bounding_set(*capability).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a separate thread: capabilities belong to threads, and dropping is permanent.
    fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    fn status(key: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    }

    #[test]
    fn only_kept_capabilities_remain() {
        let before = status("CapPrm");
        on_own_thread(move || {
            let left = cut().unwrap();
            assert_eq!(left.bits(), before & KEPT.bits());
            assert_eq!(status("CapPrm"), before & KEPT.bits());
            assert_eq!(status("CapEff") & !KEPT.bits(), 0);
            assert_eq!((status("CapInh"), status("CapAmb")), (0, 0));
            if before & CapabilitySet::SETPCAP.bits() != 0 {
                assert_eq!(status("CapBnd") & !KEPT.bits(), 0);
            }
            // Repeating has no effect.
            assert_eq!(cut(), Ok(left));
        });
        assert_eq!(status("CapPrm"), before);
    }

    #[test]
    fn dropping_nothing_succeeds() {
        on_own_thread(|| {
            assert_eq!(cut_to(CapabilitySet::empty()), Ok(CapabilitySet::empty()));
            assert_eq!(cut(), Ok(CapabilitySet::empty()));
            assert_eq!((status("CapPrm"), status("CapEff")), (0, 0));
        });
    }
}
