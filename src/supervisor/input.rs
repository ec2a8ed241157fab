//! What the loop of a supervisor learns, and the tasks that bring it there.

use crate::supervisor::outcome::NotBegun;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{
    effects,
    file_reading::FileReading,
    running::{
        disk_space::Place,
        freeze::{self, NotFrozen, Why},
        live_update::{Applied, Asker},
        resources::Given,
        taps::Told,
        viewer::Opened,
    },
    start::{admission::Step, begin::PreviousRun, launch::Qemu, prepare::Prepared},
};
use crate::store::running::Found;
use crate::{
    control::types::{Refusal, Request},
    machine::live::Change,
    sys::{
        file_watch::Changes,
        pidfd::Exit,
        signal::{Signal, Signals},
        suspend_watch::Sleeps,
    },
    value::{Label, Operator},
};

/// Something the loop has to know.
#[derive(Debug)]
pub(crate) enum Fact {
    Signal(Signal),
    Request(Request),
    Progress(String),
    Admission(Step),
    /// What an earlier supervisor left, and what was saved.
    PreviousRun(Box<PreviousRun>),
    Prepared(Box<Result<Prepared, NotBegun>>),
    /// QEMU runs, with what it was given of the host; or not, and what there is of an earlier one.
    Launched(Box<Result<(Qemu, Given), (NotBegun, Found)>>),
    /// A start was called off, and nothing of it goes on; what there is of its QEMU.
    StartAborted(Box<Found>),
    /// The VM file and the files beside it are read; or why not.
    FilesRead(Result<Box<FileReading>, String>),
    /// That takes longer than it may.
    FilesLate,
    /// A status that waits for the files waits no longer.
    StatusDue,
    /// What counts of a reloaded VM file at once does.
    Reloaded(Option<Asker>),
    /// What QEMU was given of the host.
    Given(u64, Given),
    /// The screen's socket is open; or why not.
    Screen(u64, Result<Opened, String>),
    /// Everything is written that a re-executed supervisor reads; or the storage does not answer.
    Written(bool),
    Qmp(u64, qmp::Event),
    MonitorClosed(u64),
    /// Another connection to the monitor, and QEMU's run state when it was made.
    MonitorBack(u64, qmp::Session, String),
    /// The guest is ready, with what is to be noted of it; or it will never be, and why.
    Ready(u64, Result<Option<String>, String>),
    /// The guest's state is saved; or not, and why.
    Saved(u64, Result<(), String>),
    /// Whether the SIGTERM came because the host goes down.
    Stopped {
        host_down: bool,
    },
    /// QEMU's reply to a command of this number, behind the events that it sent before; and what the command is for.
    Executed(u64, u64, &'static str, Result<(), qmp::Error>),
    /// The balloon's target in bytes, and whether QEMU has taken it.
    MemorySet(u64, u64, Result<(), qmp::Error>, Option<effects::Reply>),
    /// What the guest has, in bytes.
    Memory(u64, u64),
    /// The vCPUs' threads could not be bound to their CPUs, and why.
    NotPinned(u64, String),
    /// What became of changes to the running machine.
    Applied(u64, Applied),
    /// The devices that the guest has let go of, and those that it was asked for and holds on to.
    LetGo(u64, Vec<Change>, Vec<Change>),
    /// The QEMU that is installed now is of this version.
    Installed(u64, String),
    /// The guest's file systems, which are to be frozen for so long at most, are; or not.
    Froze(u64, Duration, Result<u64, NotFrozen>, freeze::Reply),
    /// They are to be thawed.
    ThawDue(u64),
    /// They are; or not.
    Thawed(u64, Why, Result<u64, Refusal>, Option<freeze::Reply>),
    /// Of the VM's operators, those that the host does not know.
    UnknownOperators(Vec<Operator>),
    /// The host has slept for so long.
    HostSlept(Duration),
    /// What has become of the taps.
    Taps(u64, Told),
    /// What the host makes difficult.
    Trouble(u64, Trouble),
    /// QEMU has ended; the kernel's OOM killer was at work.
    Gone(u64, Exit, bool),
    FileChanged,
}

/// What is heard of the host's own troubles.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The guest is held, since there is no room for these disks; as of this turn.
    NoSpace { turn: u64, places: Vec<(Label, Place)> },
    /// There is room again.
    Room,
    /// QEMU's monitor does not answer in time.
    Silent,
    /// It does; or its connection has closed.
    Answered(bool),
}

pub(crate) async fn forward_signals(mut signals: Signals, facts: mpsc::Sender<Fact>) {
    loop {
        let signal = signals.next().await;
        if facts.send(Fact::Signal(signal)).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn forward_requests(
    mut asked: mpsc::Receiver<Request>,
    facts: mpsc::Sender<Fact>,
) {
    while let Some(request) = asked.recv().await {
        if facts.send(Fact::Request(request)).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn forward_sleeps(mut sleeps: Sleeps, facts: mpsc::Sender<Fact>) {
    while let Some(slept) = sleeps.next().await {
        if facts.send(Fact::HostSlept(slept)).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn forward_changes(mut changes: Changes, facts: mpsc::Sender<Fact>) {
    while changes.next().await.is_some() {
        if facts.send(Fact::FileChanged).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

pub(crate) async fn next_beat(beat: &mut Option<tokio::time::Interval>) {
    match beat {
        Some(beat) => drop(beat.tick().await),
        None => std::future::pending().await,
    }
}
