//! Loop devices. Each is detached immediately (`LO_FLAGS_AUTOCLEAR`), so the kernel removes it with
//! its last descriptor: no device outlives its test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// A loop device, which exists until it is dropped.
pub(crate) struct Loop {
    path: PathBuf,
    _open: File,
}

impl Loop {
    /// Creates a device on `backing` with logical sectors of `sector` bytes; `None` if that is
    /// impossible and not required (`QVM_TEST_REQUIRE=loop`).
    pub(crate) fn new(backing: &Path, sector: u32) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(backing);
        let output = losetup.output().unwrap();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(!super::required("loop"), "no loop device can be made: {why}");
            println!("skipped: no loop device: {why}");
            return None;
        }
        let path = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        let open = File::open(&path).unwrap();
        let detached = Command::new("losetup").arg("--detach").arg(&path).status().unwrap();
        assert!(detached.success());
        Some(Self { path, _open: open })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
