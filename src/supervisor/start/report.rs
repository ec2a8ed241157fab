//! What a start reports to its supervisor.

use super::launch::LaunchedQemu;
use crate::{
    control::types::End, life::StartEvent, store::identity::Identity,
    supervisor::running::event::HostShareGiven, sys::lock::Lock, value::Note,
};

/// What a start reports to its supervisor.
#[derive(Debug)]
pub(crate) enum Report {
    /// The preparation made progress.
    Progress(String),
    /// The start waits to be admitted; for what.
    Waiting(String),
    /// The result of the search for a QEMU process of an earlier supervisor.
    Previous { ends: Vec<End>, identity: Option<Identity>, event: StartEvent },
    /// The start is admitted. The turn, if any, is held for [`SETTLE`](super::admission::SETTLE).
    Admitted(Option<Lock>),
    /// Everything is prepared, with these notes.
    Prepared { notes: Vec<Note>, identity: Identity },
    /// QEMU answers, with what it was given of the host.
    Launched(Box<(LaunchedQemu, HostShareGiven)>),
    /// The phase failed, or was aborted.
    Ended(StartEvent),
}
