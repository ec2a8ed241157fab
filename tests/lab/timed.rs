//! The durations of tests, for the list of the slowest ones that `make test` prints.

use std::{
    fs::OpenOptions,
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

/// Appends `TEST BEGIN END`, in seconds, to the file `QVM_TEST_TIMES` when it is dropped. libtest
/// names the thread of a test after it.
pub(crate) struct Timed(f64);

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

impl Timed {
    pub(crate) fn new() -> Self {
        Self(seconds())
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let (Some(file), Some(name)) = (std::env::var_os("QVM_TEST_TIMES"), thread.name()) else {
            return;
        };
        let line = format!("{name} {:.3} {:.3}\n", self.0, seconds());
        // A test does not fail if the list cannot be written.
        let _ = OpenOptions::new()
            .append(true)
            .open(file)
            .and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
