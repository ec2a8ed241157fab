//! Loop devices of a test's own. Each is detached as soon as it is attached, which the kernel does when the last
//! descriptor of it is closed (`LO_FLAGS_AUTOCLEAR`): none outlives the test, however the test ends.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// A loop device, there while this value is.
pub(crate) struct Loop {
    path: PathBuf,
    _open: File,
}

impl Loop {
    /// A device on `backing` with logical sectors of `sector` bytes; `None` where there can be none and none is
    /// required (`QVM_TEST_REQUIRE=loop`).
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
