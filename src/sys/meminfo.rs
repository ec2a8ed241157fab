//! The host's memory (proc_meminfo(5)).

use std::{fs, path::Path};

/// Returns `MemTotal` in bytes; `proc` is `/proc`.
pub fn total(proc: &Path) -> Option<u64> {
    line(proc, "MemTotal:")
}

/// Returns `Hugetlb` in bytes: memory reserved for huge pages of any size, used or not (Linux
/// 4.16).
pub fn huge_pages(proc: &Path) -> Option<u64> {
    line(proc, "Hugetlb:")
}

fn line(proc: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(proc.join("meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_bytes() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(total(proc.path()), None);
        for (text, bytes) in [
            ("MemTotal:       16306148 kB\nMemFree:  1 kB\n", Some(16_306_148 << 10)),
            ("MemFree:  1 kB\n", None),
            ("MemTotal: many kB\n", None),
            ("MemTotal: 18446744073709551615 kB\n", None),
        ] {
            fs::write(proc.path().join("meminfo"), text).unwrap();
            assert_eq!(total(proc.path()), bytes, "{text}");
        }
        fs::write(proc.path().join("meminfo"), "MemTotal: 4 kB\nHugetlb:  2048 kB\n").unwrap();
        assert_eq!((total(proc.path()), huge_pages(proc.path())), (Some(4096), Some(2 << 20)));
        assert!(total(Path::new("/proc")).is_some() && huge_pages(Path::new("/proc")).is_some());
    }
}
