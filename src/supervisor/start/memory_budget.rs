//! Whether the host has enough memory for one more VM.

use std::fmt;

use crate::value::{Size, VmName};

/// The memory of a VM beside the guest's, in bytes: QEMU (18 MiB without devices, QEMU 10.0),
/// queues, threads and buffers of its devices, and the supervisor.
pub const OVERHEAD: u64 = 48 * Size::MIB;
/// Guest bytes per byte of page tables: 8 bytes for each 4096, in QEMU's tables and in KVM's.
pub const TABLES: u64 = 256;
/// The default reserve of the host: its memory divided by this number …
pub const RESERVE_PART: u64 = 16;
/// … but not less than this, in bytes: a kernel, systemd, a journal and a login …
pub const RESERVE_LEAST: u64 = 512 * Size::MIB;
/// … and not more than this, in bytes.
pub const RESERVE_MOST: u64 = 4 * Size::GIB;

/// The memory of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it (`MemTotal`).
    pub total: u64,
    /// Huge pages (`Hugetlb`).
    pub huge_pages: u64,
    /// The reserve of the host.
    pub reserve: u64,
}

impl Memory {
    /// Creates the memory of a host; `reserve` is `reserveMem` of the host settings.
    pub fn new(total: u64, huge_pages: u64, reserve: Option<Size>) -> Self {
        let by_rule = (total / RESERVE_PART).clamp(RESERVE_LEAST, RESERVE_MOST);
        Self { total, huge_pages, reserve: reserve.map_or(by_rule, Size::bytes) }
    }

    /// The memory for VMs.
    pub const fn for_vms(self) -> u64 {
        self.total.saturating_sub(self.huge_pages).saturating_sub(self.reserve)
    }
}

/// The memory that a VM may use: the guest's without regard to the balloon, and the overhead.
pub const fn commitment(mem: u64) -> u64 {
    mem.saturating_add(mem / TABLES).saturating_add(OVERHEAD)
}

/// The memory of a VM to start, beside the VMs that run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// The host.
    pub memory: Memory,
    /// How many VMs run or are being started.
    pub others: usize,
    /// The memory that these VMs may use, in bytes.
    pub committed: u64,
    /// The memory that this VM may use, in bytes.
    pub wanted: u64,
}

impl Sums {
    /// Creates the sums for a guest with `mem` bytes.
    pub fn of(memory: Memory, others: &[(VmName, u64)], mem: u64) -> Self {
        Self {
            memory,
            others: others.len(),
            committed: others.iter().fold(0, |sum, (_, mem)| sum.saturating_add(commitment(*mem))),
            wanted: commitment(mem),
        }
    }

    /// Whether the VM can be started.
    pub const fn fits(&self) -> bool {
        self.committed.saturating_add(self.wanted) <= self.memory.for_vms()
    }

    /// Whether the VM does not even fit alone.
    pub const fn never_fits(&self) -> bool {
        self.wanted > self.memory.for_vms()
    }
}

/// `it may take 4.1 GiB, and 1.5 GiB are left: of 16 GiB the host keeps 1 GiB, and 3 VMs may take
/// 13.5 GiB`
impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { total, huge_pages, reserve } = self.memory;
        let left = self.memory.for_vms().saturating_sub(self.committed);
        let (wanted, left, total) = (bytes(self.wanted), bytes(left), bytes(total));
        write!(f, "it may take {wanted}, and {left} are left: of {total} ")?;
        if huge_pages > 0 {
            write!(f, "{} are huge pages, ", bytes(huge_pages))?;
        }
        write!(f, "the host keeps {}", bytes(reserve))?;
        match self.others {
            0 => f.write_str(", and no other VM runs"),
            1 => write!(f, ", and 1 VM may take {}", bytes(self.committed)),
            others => write!(f, ", and {others} VMs may take {}", bytes(self.committed)),
        }
    }
}

/// Formats bytes, rounded down to a tenth: `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    let (unit, name) = if bytes >= Size::GIB { (Size::GIB, "GiB") } else { (Size::MIB, "MiB") };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn others(all: &[u64]) -> Vec<(VmName, u64)> {
        all.iter().enumerate().map(|(n, mem)| (format!("v{n}").parse().unwrap(), *mem)).collect()
    }

    #[test]
    fn reserve_of_the_host() {
        for (total, reserve, kept) in [
            (1 << 30, None, 512 << 20),
            (16 << 30, None, 1 << 30),
            (512 << 30, None, 4 << 30),
            (16 << 30, Some(0), 0),
            (16 << 30, Some(100 << 20), 100 << 20),
        ] {
            let memory = Memory::new(total, 0, reserve.map(Size::from_bytes));
            assert_eq!(memory.reserve, kept, "{total}");
            assert_eq!(memory.for_vms(), total - kept);
        }
        // Huge pages are not available for guests.
        assert_eq!(Memory::new(16 << 30, 10 << 30, None).for_vms(), 5 << 30);
        assert_eq!(Memory::new(1 << 30, 1 << 30, None).for_vms(), 0);
    }

    #[test]
    fn last_byte_fits() {
        let one = commitment(1 << 30);
        assert_eq!(one, (1 << 30) + (4 << 20) + (48 << 20));
        let host = |total| Memory::new(total, 0, Some(Size::from_bytes(0)));
        let sums = |total| Sums::of(host(total), &others(&[1 << 30, 1 << 30]), 1 << 30);
        assert!(sums(3 * one).fits());
        assert!(!sums(3 * one - 1).fits());
        assert!(!sums(one).never_fits());
        assert!(sums(one - 1).never_fits());
    }

    #[test]
    fn sums_are_printed() {
        let memory = Memory::new(16 << 30, 2 << 30, None);
        assert_eq!(
            Sums::of(memory, &others(&[4 << 30, 7 << 30]), 4 << 30).to_string(),
            "it may take 4 GiB, and 1.8 GiB are left: of 16 GiB 2 GiB are huge pages, \
             the host keeps 1 GiB, and 2 VMs may take 11.1 GiB"
        );
        let memory = Memory::new(8 << 30, 0, Some(Size::from_bytes(256 << 20)));
        assert_eq!(
            Sums::of(memory, &[], 16 << 30).to_string(),
            "it may take 16.1 GiB, and 7.7 GiB are left: of 8 GiB the host keeps 256 MiB, \
             and no other VM runs"
        );
    }

    proptest! {
        #[test]
        fn admission_leaves_the_reserve(
            total in 0u64..,
            huge in 0u64..,
            reserve in proptest::option::of(0u64..),
            mem in 0u64..,
            all in proptest::collection::vec(0u64.., 0..5),
        ) {
            let memory = Memory::new(total, huge, reserve.map(Size::from_bytes));
            let sums = Sums::of(memory, &others(&all), mem);
            let with_overhead = |mem: &u64| u128::from(*mem) + u128::from(OVERHEAD);
            let exact: u128 = all.iter().chain([&mem]).map(with_overhead).sum();
            if sums.fits() && memory.for_vms() < u64::MAX {
                prop_assert!(exact <= u128::from(total));
            }
            let _ = sums.to_string();
        }
    }
}
