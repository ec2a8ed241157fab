//! Control requests that are answered when their effect is there, or with the reason why it is not.
//!
//! QEMU sends the event of a change before the reply to the command that caused it. Replies therefore come to the loop behind the
//! events of the same connection (see [`Supervisor::listen`]): when a reply is handled, the state is already the new one.

use crate::supervisor::refusal::qmp_refusal;
use std::time::Duration;

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::warn;

use super::{Supervisor, input::Fact};
use crate::{
    control::types::Refusal,
    life::{self, Command, QUIT_GRACE, State},
};

/// How long QEMU has for a command, its event included. Longer than one QMP command may take.
const EFFECT_LIMIT: Duration = Duration::from_secs(12);
/// How long QEMU has until it exits: `quit`, and the kernel's work after SIGKILL.
const EXIT_LIMIT: Duration = Duration::from_secs(QUIT_GRACE.as_secs() + 10);
/// How many replies of QEMU wait for the loop; further ones go there directly.
const REPLY_QUEUE: usize = 64;

/// Where the answer goes. Dropped where the client has gone.
pub(crate) type Reply = oneshot::Sender<Result<(), Refusal>>;

/// The requests that wait for their effect.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pending: Vec<Pending>,
    /// The number of the last QMP command.
    number: u64,
    /// To the task that passes on the events of the monitor's present connection.
    replies: Option<mpsc::Sender<Fact>>,
    /// Why the last save of the guest's state failed.
    pub(crate) not_saved: Option<String>,
    /// A re-execution was asked for, and waits until nothing is pending.
    pub(crate) reexec: bool,
}

/// One request.
#[derive(Debug)]
struct Pending {
    command: Command,
    until: Instant,
    /// Its step of the life machine is being executed.
    executing: bool,
    /// The QMP commands that QEMU has not answered.
    outstanding: Vec<u64>,
    /// The monitor's connection closed before the reply came.
    lost: bool,
    /// QEMU has sent the RESET event of a `system_reset`.
    was_reset: bool,
    reply: Reply,
}

impl Effects {
    /// When the next request runs out of time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|one| one.until).min()
    }

    /// The queue for replies that come behind the events of a new connection.
    pub(crate) fn queue(&mut self) -> mpsc::Receiver<Fact> {
        let (replies, queue) = mpsc::channel(REPLY_QUEUE);
        self.replies = Some(replies);
        queue
    }

    /// The number of a QMP command that is about to be sent; a request whose step sends it waits for the reply.
    fn number(&mut self) -> u64 {
        self.number += 1;
        for one in self.pending.iter_mut().filter(|one| one.executing) {
            one.outstanding.push(self.number);
        }
        self.number
    }

    /// QEMU was reset by `system_reset`.
    pub(crate) fn was_reset(&mut self) {
        self.pending.iter_mut().for_each(|one| one.was_reset = true);
    }

    /// Takes the requests that `answered` is true of.
    fn take(&mut self, answered: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let (taken, kept) = std::mem::take(&mut self.pending).into_iter().partition(answered);
        self.pending = kept;
        taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl Supervisor {
    /// Takes a step for a request, and answers it when the effect is there. A request to the guest itself is answered when it was sent.
    pub(crate) fn request_effect(&mut self, command: Command, reply: Reply) {
        let limit = match command {
            Command::Stop { .. } | Command::Reboot => {
                self.feed(life::Event::Asked(command));
                return drop(reply.send(Ok(())));
            }
            Command::Pause | Command::Resume | Command::Reset => EFFECT_LIMIT,
            Command::Terminate => EXIT_LIMIT,
            Command::Suspend => {
                self.effects.not_saved = None;
                self.vm.shutdown_timeout.duration() + EXIT_LIMIT
            }
        };
        self.effects.pending.push(Pending {
            command,
            until: Instant::now() + limit,
            executing: true,
            outstanding: vec![],
            lost: false,
            was_reset: false,
            reply,
        });
        self.feed(life::Event::Asked(command));
        self.effects.pending.iter_mut().for_each(|one| one.executing = false);
        self.answer_effects();
    }

    /// Sends a QMP command whose reply is handled behind the events that QEMU sent before it. A failure is logged.
    pub(crate) fn command_qemu<F, W>(&mut self, what: &'static str, command: F)
    where
        F: FnOnce(qmp::Client) -> W,
        W: Future<Output = Result<(), qmp::Error>> + Send + 'static,
    {
        let Some(qemu) = &self.qemu else { return };
        let work = command(qemu.client.clone());
        let (generation, number) = (self.generation, self.effects.number());
        let (facts, replies) = (self.facts.clone(), self.effects.replies.clone());
        self.tasks.spawn(async move {
            let done = work.await;
            if let Err(error) = &done
                && !matches!(error, qmp::Error::Closed)
            {
                warn!("cannot {what}: {error}");
            }
            let fact = Fact::Executed(generation, number, what, done);
            let unsent = match replies {
                Some(replies) => replies.send(fact).await.err().map(|unsent| unsent.0),
                None => Some(fact),
            };
            if let Some(fact) = unsent {
                let _ = facts.send(fact).await;
            }
        });
    }

    /// QEMU has replied, or did not in time.
    pub(crate) fn on_executed(
        &mut self,
        number: u64,
        what: &'static str,
        done: Result<(), qmp::Error>,
    ) {
        match done {
            Ok(()) => {
                for one in &mut self.effects.pending {
                    one.outstanding.retain(|other| *other != number);
                }
            }
            // The state is read again over the next connection; or QEMU has gone.
            Err(qmp::Error::Closed) => {
                for one in &mut self.effects.pending {
                    one.lost |= one.outstanding.contains(&number);
                    one.outstanding.retain(|other| *other != number);
                }
            }
            Err(error) => {
                let refusal = qmp_refusal(what, &error);
                for one in self.effects.take(|one| one.outstanding.contains(&number)) {
                    let _ = one.reply.send(Err(refusal.clone()));
                }
            }
        }
        self.answer_effects();
    }

    /// Answers every request that is decided by now.
    pub(crate) fn answer_effects(&mut self) {
        let mut kept = Vec::new();
        for one in std::mem::take(&mut self.effects.pending) {
            match self.outcome(&one) {
                Some(outcome) => drop(one.reply.send(outcome)),
                None => kept.push(one),
            }
        }
        self.effects.pending = kept;
        if self.effects.is_empty() && std::mem::take(&mut self.effects.reexec) {
            self.reexec();
        }
    }

    /// Answers the requests whose time is up.
    pub(crate) fn on_effects_overdue(&mut self) {
        let now = Instant::now();
        for one in self.effects.take(|one| one.until <= now) {
            let why = match one.command {
                Command::Terminate | Command::Suspend => {
                    "QEMU has not exited in time; it may be blocked in the kernel".to_owned()
                }
                _ => {
                    "QEMU did not confirm the command in time; it may still take effect".to_owned()
                }
            };
            let _ = one.reply.send(Err(Refusal::Unconfirmed(why)));
        }
        if self.effects.is_empty() && std::mem::take(&mut self.effects.reexec) {
            self.reexec();
        }
    }

    /// What a request comes to in the present state; `None` while that is open.
    fn outcome(&self, one: &Pending) -> Option<Result<(), Refusal>> {
        if one.executing {
            return None;
        }
        let state = &self.life.state;
        let replied = one.outstanding.is_empty();
        let not_now = |word| Some(Err(Refusal::NotNow(word)));
        let failed = |why: &str| Some(Err(Refusal::Failed(why.to_owned())));
        match (one.command, state) {
            (Command::Terminate, State::Ended) => Some(Ok(())),
            (Command::Terminate, _) => None,
            (
                Command::Suspend,
                State::Suspending(_) | State::Quitting { .. } | State::Killing { .. },
            ) => None,
            (Command::Suspend, State::Ended) => match self.ends.first() {
                Some(end) if end.reason == "suspended" => Some(Ok(())),
                Some(end) => failed(&end.detail),
                None => not_now("stopping"),
            },
            (Command::Suspend, State::Running | State::Paused(_)) => {
                failed(self.effects.not_saved.as_deref().unwrap_or("it was called off"))
            }
            // A relaunch: the machine that was to be reset is gone.
            (Command::Reset, State::Preparing | State::Launching) => Some(Ok(())),
            (Command::Reset, State::Quitting { then: life::Outcome::Relaunch, .. }) => None,
            (_, State::Preparing | State::Launching) => not_now("starting"),
            (
                _,
                State::Cancelling { .. }
                | State::Stopping(_)
                | State::Quitting { .. }
                | State::Killing { .. }
                | State::Ended,
            ) => not_now("stopping"),
            (_, State::Running | State::Paused(_) | State::Suspending(_)) if !replied => None,
            (_, State::Suspending(_)) => not_now("being suspended"),
            (Command::Pause, State::Paused(_)) | (Command::Resume, State::Running) => Some(Ok(())),
            (Command::Reset, _) => one.was_reset.then_some(Ok(())),
            (Command::Pause | Command::Resume, _) if one.lost => None,
            (Command::Pause, State::Running) => failed("the guest was resumed meanwhile"),
            (Command::Resume, State::Paused(_)) => failed("the guest was paused again"),
            (Command::Stop { .. } | Command::Reboot, _) => Some(Ok(())),
        }
    }
}
