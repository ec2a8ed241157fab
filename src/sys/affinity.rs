//! CPU affinity of threads (sched_setaffinity(2)).

use std::io;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Binds a thread to these CPUs. CPUs that the host does not have or that its cpuset excludes are
/// ignored as long as one is left.
///
/// # Errors
/// None of the CPUs is available (`EINVAL`), the thread has ended (`ESRCH`), or it belongs to
/// another user (`EPERM`).
pub fn pin(thread: u32, cpus: impl IntoIterator<Item = u16>) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu.into())?;
    }
    Ok(sched_setaffinity(of(thread), &set)?)
}

/// Allows a thread to run on all CPUs of this process.
///
/// # Errors
/// As for [`pin`].
pub fn free(thread: u32) -> io::Result<()> {
    let own = sched_getaffinity(Pid::from_raw(0))?;
    Ok(sched_setaffinity(of(thread), &own)?)
}

fn of(thread: u32) -> Pid {
    Pid::from_raw(thread.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus() -> Vec<usize> {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
    }

    #[test]
    fn thread_is_pinned_and_released() {
        std::thread::spawn(|| {
            let all = cpus();
            let thread = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
            let last = u16::try_from(*all.last().unwrap()).unwrap();
            pin(thread, [last, 1023]).unwrap();
            assert_eq!(cpus(), [usize::from(last)]);
            assert_eq!(pin(thread, [1023]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(cpus(), [usize::from(last)]);
            // Of this very thread, nothing more can be learnt.
            free(thread).unwrap();
            pin(thread, all.iter().map(|cpu| u16::try_from(*cpu).unwrap())).unwrap();
            assert_eq!(cpus(), all);
        })
        .join()
        .unwrap();
    }
}
