//! Log files that rotate, with the time of each line beside them.

use std::path::{Path, PathBuf};

pub mod file;
pub mod reader;
pub mod text;

/// Where the older half of the log at `path` is.
pub fn older_log(path: &Path) -> PathBuf {
    beside(path, ".1")
}

/// Where the times of the lines of the log at `path` are.
pub fn times_of_log(path: &Path) -> PathBuf {
    beside(path, ".times")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
