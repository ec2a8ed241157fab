//! What the loop of a supervisor learns, and the tasks that bring it there.

use tokio::sync::mpsc;

use super::{launch::Qemu, prepare::Prepared};
use crate::{
    control::types::Request,
    host::{
        pidfd::Exit,
        signal::{Signal, Signals},
        watch::Changes,
    },
};

/// Something the loop has to know.
#[derive(Debug)]
pub(super) enum Fact {
    Signal(Signal),
    Request(Request),
    Progress(String),
    Prepared(Box<Result<Prepared, String>>),
    Launched(Box<Result<Qemu, String>>),
    Qmp(u64, qmp::Event),
    MonitorClosed(u64),
    MonitorBack(u64, qmp::Session),
    /// What the guest has, in bytes.
    Memory(u64, u64),
    Gone(u64, Exit),
    FileChanged,
}

pub(super) async fn forward_signals(mut signals: Signals, facts: mpsc::Sender<Fact>) {
    loop {
        let signal = signals.next().await;
        if facts.send(Fact::Signal(signal)).await.is_err() {
            return;
        }
    }
}

pub(super) async fn forward_requests(
    mut asked: mpsc::Receiver<Request>,
    facts: mpsc::Sender<Fact>,
) {
    while let Some(request) = asked.recv().await {
        if facts.send(Fact::Request(request)).await.is_err() {
            return;
        }
    }
}

pub(super) async fn forward_changes(mut changes: Changes, facts: mpsc::Sender<Fact>) {
    while changes.next().await.is_some() {
        if facts.send(Fact::FileChanged).await.is_err() {
            return;
        }
    }
}
