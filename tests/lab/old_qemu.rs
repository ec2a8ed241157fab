//! The oldest QEMU that qvm supports.

use std::{path::Path, process::Command};

use super::{Lab, long, required};

/// Creates a lab with QEMU 7.2; `None` if that is not built. `QVM_TEST_REQUIRE=qemu-7.2` requires
/// it.
pub(crate) fn lab() -> Option<Lab> {
    let archive = std::env::var_os("QVM_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests"), Into::into)
        .join("qemu-7.2.tar");
    if !archive.exists() {
        let how = format!("{} is missing: `tests/guest/build DIR qemu-7.2`", archive.display());
        assert!(!required("qemu-7.2"), "{how}");
        println!("skipped: {how}");
        return None;
    }
    let mut lab = Lab::new();
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(lab.path()).status();
    assert!(unpacked.unwrap().success());
    lab.qemu = Some(lab.path().join("qemu-7.2/qemu-system-x86_64").into());
    Some(lab)
}

/// A lab of the machine's QEMU and one of the oldest QEMU; without the long form only one of both.
pub(crate) fn labs(short_form: ShortForm) -> Vec<Lab> {
    let machine = (long() || short_form == ShortForm::Machine).then(Lab::new);
    let oldest = (long() || short_form == ShortForm::Oldest).then(lab).flatten();
    machine.into_iter().chain(oldest).collect()
}

/// The QEMU of the short form of a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShortForm {
    /// The machine's.
    Machine,
    /// The oldest one.
    Oldest,
}
