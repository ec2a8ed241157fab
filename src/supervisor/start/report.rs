//! What a start reports to its supervisor.

use super::launch::LaunchedQemu;
use crate::{
    control::types::End, life::StartEvent, store::identity::Identity,
    supervisor::running::event::HostShareGiven, sys::lock::Lock,
};

/// What a start reports to its supervisor.
#[derive(Debug)]
pub(crate) enum Report {
    /// The preparation made progress.
    Progress(String),
    /// The start waits to be admitted; for what.
    Waiting(String),
    /// It is known, or cannot be known, what an earlier supervisor left.
    Previous { ends: Vec<End>, identity: Option<Identity>, event: StartEvent },
    /// The start is admitted. The turn, if there is one, is to be held for [`SETTLE`](super::admission::SETTLE).
    Admitted(Option<Lock>),
    /// Everything is prepared, with these notes.
    Prepared { notes: Vec<String>, identity: Identity },
    /// QEMU answers, with what it was given of the host.
    Launched(Box<(LaunchedQemu, HostShareGiven)>),
    /// The phase failed, or was aborted.
    Ended(StartEvent),
}
