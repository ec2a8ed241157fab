//! The OOM score adjustment of a process, `oom_score_adj` (proc_pid_oom_score_adj(5)).

use std::{fs, io, path::Path};

/// Returns the adjustment of a process; `proc` is `/proc`, and `pid` a number or `self`.
///
/// # Errors
/// The process does not exist.
pub fn get(proc: &Path, pid: &str) -> io::Result<i16> {
    let text = fs::read_to_string(proc.join(pid).join("oom_score_adj"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Sets the adjustment of a process if it differs.
///
/// # Errors
/// The process has ended, or the value is below its minimum without `CAP_SYS_RESOURCE` (`EACCES`).
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
    fn adjustment_is_set() {
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
