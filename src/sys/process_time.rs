//! Resource usage of processes and threads: proc_pid_stat(5), proc_pid_statm(5), and
//! Documentation/scheduler/sched-stats.rst.

use std::{fs, path::Path};

/// The resource usage of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// CPU time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// Resident set size, in bytes.
    pub resident_bytes: u64,
}

/// The scheduling statistics of a thread.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Thread {
    /// Time on a CPU, in seconds.
    pub ran: f64,
    /// Time waiting for a CPU, in seconds; the guest sees it as stolen time.
    pub waited: f64,
}

/// Reads the resource usage of a process; `proc` is `/proc`. `None` if the process does not exist.
pub fn used(proc: &Path, pid: u32) -> Option<Used> {
    let dir = proc.join(pid.to_string());
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The second field is the name in parentheses, which may contain any byte.
    let (_, fields) = stat.rsplit_once(") ")?;
    let field = |number: usize| fields.split(' ').nth(number - 3)?.parse::<u64>().ok();
    let ticks = field(14)?.checked_add(field(15)?)?;
    let statm = fs::read_to_string(dir.join("statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(Used {
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        resident_bytes: pages.checked_mul(rustix::param::page_size() as u64)?,
    })
}

/// Reads the statistics of a thread; `None` if it does not exist, or the kernel has no statistics.
pub fn thread(proc: &Path, pid: u32, thread: u32) -> Option<Thread> {
    let path = proc.join(format!("{pid}/task/{thread}/schedstat"));
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut seconds = || Some(numbers.next()?.ok()? as f64 / 1e9);
    Some(Thread { ran: seconds()?, waited: seconds()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_may_contain_parentheses() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("7/stat", "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 100 200 300\n");
        write("7/statm", "1000 25 3 4 5 6 7\n");
        write("7/task/9/schedstat", "1500000000 250000000 42\n");
        let found = used(dir.path(), 7).unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(found.cpu_seconds, 300.0 / ticks);
        assert_eq!(found.resident_bytes, 25 * rustix::param::page_size() as u64);
        assert_eq!(thread(dir.path(), 7, 9), Some(Thread { ran: 1.5, waited: 0.25 }));
        assert_eq!((used(dir.path(), 8), thread(dir.path(), 7, 8)), (None, None));
        let most = u64::MAX;
        write("7/stat", &format!("7 (a) S 1 2 3 4 5 6 7 8 9 10 {most} {most} 0 0 20 0 4\n"));
        assert_eq!(used(dir.path(), 7), None);
    }

    #[test]
    fn own_usage_is_read() {
        let found = used(Path::new("/proc"), std::process::id()).unwrap();
        assert!(found.resident_bytes > 1 << 20, "{found:?}");
    }
}
