//! What the phases of a start send to the start that owns them.

use super::{launch::LaunchedQemu, prepare::Prepared, previous_run::PreviousRun};
use crate::{
    life::{Leftover, StartFailure},
    supervisor::running::event::HostShareGiven,
    sys::lock::Lock,
};

/// A result, or what a phase is doing.
#[derive(Debug)]
pub(super) enum Message {
    /// The preparation made progress.
    Progress(String),
    /// The start waits to be admitted; for what.
    Waiting(String),
    /// The search for a QEMU process of an earlier supervisor has ended.
    PreviousRead(Box<PreviousRun>),
    /// The start is admitted, or refused. A turn is held while the host is under pressure.
    Admitted(Result<Option<Lock>, StartFailure>),
    /// Everything is prepared, or not.
    Prepared(Box<Result<Prepared, StartFailure>>),
    /// QEMU answers, with what it was given of the host.
    Launched(Box<(LaunchedQemu, HostShareGiven)>),
    /// The launch or the adoption failed, and what is left of QEMU.
    Failed(StartFailure, Leftover),
    /// The phase was canceled, and nothing of it continues.
    Aborted(Leftover),
}
