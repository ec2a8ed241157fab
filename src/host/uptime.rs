//! How long ago the host was booted (proc_uptime(5)).

use std::{fs, path::Path, time::Duration};

/// Since the boot, with what it slept; `proc` is `/proc`.
pub fn read(proc: &Path) -> Option<Duration> {
    let text = fs::read_to_string(proc.join("uptime")).ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_two_numbers() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(read(proc.path()), None);
        for (text, expected) in [
            ("12.50 99.00\n", Some(Duration::from_millis(12_500))),
            ("-1 2", None),
            ("inf", None),
            ("", None),
        ] {
            fs::write(proc.path().join("uptime"), text).unwrap();
            assert_eq!(read(proc.path()), expected, "{text}");
        }
        assert!(read(Path::new("/proc")).is_some());
    }
}
