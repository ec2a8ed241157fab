//! How gladly the kernel ends a process when memory runs out (proc_pid_oom_score_adj(5)).

use std::{fs, io, path::Path};

/// What a process has; `proc` is `/proc`, and `pid` its number, or `self`.
///
/// # Errors
/// There is no such process.
pub fn get(proc: &Path, pid: &str) -> io::Result<i16> {
    let text = fs::read_to_string(proc.join(pid).join("oom_score_adj"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Gives it to a process, if it has another.
///
/// # Errors
/// It has ended, or it would get a lower one than it ever had without `CAP_SYS_RESOURCE` (`EACCES`).
pub fn set(proc: &Path, pid: u32, adjust: i16) -> io::Result<()> {
    let pid = pid.to_string();
    if get(proc, &pid)? == adjust {
        return Ok(());
    }
    fs::write(proc.join(pid).join("oom_score_adj"), adjust.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_offered() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let proc = Path::new("/proc");
        let done = set(proc, child.id(), 1000).and_then(|()| get(proc, &child.id().to_string()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done.unwrap(), 1000);
        assert!(set(proc, child.id(), 0).is_err());
        assert!(get(proc, "self").is_ok());
    }
}
