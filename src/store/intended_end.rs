//! The end of a QEMU process that exited as its supervisor intended, after that supervisor was
//! killed.

use std::path::Path;

use jiff::Timestamp;
use tracing::warn;

use super::{
    layout::VmPaths,
    record::{self, Record},
    running::{self, PreviousQemu},
};
use crate::{control::types, life::AfterQemu, sys::lock::Lock, value::chain};

/// Returns what was intended to follow the QEMU process of the run record.
pub(crate) fn recorded(paths: &VmPaths) -> Option<AfterQemu> {
    Record::read(paths).ok().flatten()?.intention?.outcome()
}

/// Records the end of a QEMU process that exited as its supervisor intended, and removes the run
/// record, so that the intention does not affect the next start. A running supervisor does this
/// itself.
pub(crate) fn settle_end(paths: &VmPaths) {
    let Ok(_supervisor) = Lock::acquire(&paths.lock()) else { return };
    let Some(AfterQemu::End(end)) = recorded(paths) else { return };
    if !matches!(running::find(paths), Ok(PreviousQemu::Exited)) {
        return;
    }
    let kept = types::End {
        reason: end.reason().to_owned(),
        at: written_at(&paths.record()).unwrap_or(Timestamp::UNIX_EPOCH).to_string(),
        detail: end.to_string(),
        code: end.start_code(),
        hint: end.start_hint().map(str::to_owned),
        failed: end.failed(),
        console: vec![],
    };
    if let Err(error) = record::keep(paths, kept) {
        warn!("cannot record how the VM ended: {}", chain(&error));
    }
    Record::remove(paths);
}

/// Returns when the intention was written.
fn written_at(record: &Path) -> Option<Timestamp> {
    std::fs::metadata(record).ok()?.modified().ok()?.try_into().ok()
}
