//! Rotating log files with the time of each line in a second file.

use std::path::{Path, PathBuf};

pub mod file;
pub mod reader;
pub mod text;

/// Returns the path of the older half of the log at `path`.
pub fn older_log(path: &Path) -> PathBuf {
    with_suffix(path, ".1")
}

/// Returns the path of the file with the times of the log at `path`.
pub fn times_of_log(path: &Path) -> PathBuf {
    with_suffix(path, ".times")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
