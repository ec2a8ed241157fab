//! The capabilities (capabilities(7)) that a supervisor keeps, of all that root has; what it starts has no others.

use rustix::{
    io,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set,
        capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities,
    },
};

/// What it keeps, and why:
///
/// - `CHOWN`, `FOWNER`, `DAC_OVERRIDE`: disks and images belong to whom the operator likes, and a disk to its QEMU's user;
/// - `SETUID`, `SETGID`, `SETPCAP`: QEMU gets a user of its own, and gives the rest of this list up;
/// - `KILL`: QEMU is ended by a signal at the last;
/// - `NET_ADMIN`: taps, and their places on bridges;
/// - `NET_BIND_SERVICE`: ports below 1024 that are forwarded into a guest;
/// - `SYS_NICE`: the vCPUs' threads are bound to CPUs;
/// - `SYS_RESOURCE`: a negative `oomScoreAdjust`.
///
/// All of them for as long as the supervisor lives: a reboot of the guest may launch another QEMU, a disk or a NIC may be added, weights
/// may change.
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

/// Gives up all but [`KEPT`], of this thread and of those that it will start: to be called before there are others. What this process
/// has not, it does not get. Gives what is left.
///
/// A program that is executed by root gets the bounding set again, and one that is executed by somebody else the ambient set: so a
/// supervisor that replaces itself keeps what it has.
///
/// # Errors
/// The kernel's; not that there was nothing to give up.
pub fn cut() -> io::Result<CapabilitySet> {
    cut_to(KEPT)
}

fn cut_to(kept: CapabilitySet) -> io::Result<CapabilitySet> {
    let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
    let bounded = match effective.contains(CapabilitySet::SETPCAP) {
        true => bound(kept),
        false => Ok(()),
    };
    // What is not inheritable is not ambient any more either (capabilities(7)); root needs neither.
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

/// What root gets when it executes a program is not more than this.
fn bound(kept: CapabilitySet) -> io::Result<()> {
    // To remove one that is not in the set is no error.
    known()
        .filter(|capability| !kept.contains(*capability))
        .try_for_each(remove_capability_from_bounding_set)
}

/// Those that this kernel knows.
fn known() -> impl Iterator<Item = CapabilitySet> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    all.take_while(|capability| capability_is_in_bounding_set(*capability).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: capabilities are a thread's, and gone for good.
    fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    fn status(key: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    }

    #[test]
    fn nothing_is_left_but_what_is_kept_and_was_there() {
        let before = status("CapPrm");
        apart(move || {
            let left = cut().unwrap();
            assert_eq!(left.bits(), before & KEPT.bits());
            assert_eq!(status("CapPrm"), before & KEPT.bits());
            assert_eq!(status("CapEff") & !KEPT.bits(), 0);
            assert_eq!((status("CapInh"), status("CapAmb")), (0, 0));
            if before & CapabilitySet::SETPCAP.bits() != 0 {
                assert_eq!(status("CapBnd") & !KEPT.bits(), 0);
            }
            // Once more is as good.
            assert_eq!(cut(), Ok(left));
        });
        assert_eq!(status("CapPrm"), before);
    }

    #[test]
    fn with_nothing_to_give_up_nothing_fails() {
        apart(|| {
            assert_eq!(cut_to(CapabilitySet::empty()), Ok(CapabilitySet::empty()));
            assert_eq!(cut(), Ok(CapabilitySet::empty()));
            assert_eq!((status("CapPrm"), status("CapEff")), (0, 0));
        });
    }
}
