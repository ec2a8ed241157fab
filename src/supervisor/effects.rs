//! Control requests that are answered after their effect, or with the reason of their failure.
//!
//! QEMU sends the event of a change before the reply to the command. The loop gets replies after
//! the events of the same connection (`running::qemu::Qemu::listen`), so the state is current when
//! a reply is handled.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    refusal::{Reply, qmp_refusal},
    running::event::Executed,
};
use crate::{
    control::types::{End, Refusal, Request},
    life::{self, ADOPTION_GRACE, Command, Leftover, Phase, QUIT_GRACE, State},
    value::ErrorCode,
};

/// The limit for a command and its event; longer than that of one QMP command.
const EFFECT_LIMIT: Duration = Duration::from_secs(12);
/// The limit for the exit of QEMU: `quit`, and the kernel's work after SIGKILL.
const EXIT_LIMIT: Duration = Duration::from_secs(QUIT_GRACE.as_secs() + 10);
/// How long a stop waits for an adoption. The life machine ends the run before that.
const ADOPTION_LIMIT: Duration = Duration::from_secs(ADOPTION_GRACE.as_secs() + 10);

/// The failure of a stop whose supervisor ends without an adopted QEMU process.
const QEMU_LEFT: &str = "the supervisor ends, but QEMU was not adopted and may still be running; \
                         `qvm kill` forces the VM off";

#[derive(Debug, Default)]
pub(crate) struct Effects {
    pending: Vec<Pending>,
    /// The number of the last QMP command.
    number: u64,
    /// Why the last save of the guest's state failed.
    not_saved: Option<Refusal>,
    /// A re-execution was requested and waits until no request is pending.
    reexec: bool,
    /// Requests received before the life machine can answer.
    early: Vec<Request>,
}

#[derive(Debug)]
struct Pending {
    command: Command,
    until: Instant,
    /// Its step of the life machine is not finished.
    executing: bool,
    /// The QMP commands without a reply.
    outstanding: Vec<u64>,
    /// The QMP connection closed before the reply.
    lost: bool,
    was_reset: bool,
    reply: Reply,
}

impl Effects {
    /// Adds a request whose step of the life machine is executed next. `state` is the state before
    /// that step, `shutdown_limit` the maximum duration of a shutdown. Returns the client of a
    /// request to the guest itself, which is answered when it is sent. A stop during an adoption
    /// waits: QEMU may not be adopted, and keep running.
    pub(crate) fn add(
        &mut self,
        command: Command,
        state: &State,
        shutdown_limit: Duration,
        reply: Reply,
    ) -> Option<Reply> {
        let limit = match command {
            Command::Stop { .. } if is_adopting(state) => ADOPTION_LIMIT,
            Command::Stop { .. } | Command::Reboot => return Some(reply),
            Command::Pause | Command::Resume | Command::Reset => EFFECT_LIMIT,
            Command::Terminate => EXIT_LIMIT,
            Command::Suspend => {
                self.not_saved = None;
                shutdown_limit + EXIT_LIMIT
            }
        };
        self.pending.push(Pending {
            command,
            until: Instant::now() + limit,
            executing: true,
            outstanding: vec![],
            lost: false,
            was_reset: false,
            reply,
        });
        None
    }

    /// Marks the steps of all requests as finished.
    pub(crate) fn on_stepped(&mut self) {
        self.pending.iter_mut().for_each(|one| one.executing = false);
    }

    /// Queues a request that the life machine cannot answer yet.
    pub(crate) fn on_early(&mut self, request: Request) {
        self.early.push(request);
    }

    /// Returns the queued early requests.
    pub(crate) fn take_early(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.early)
    }

    /// Returns the earliest deadline of a request.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|one| one.until).min()
    }

    /// Returns the number of the next QMP command. The requests whose step sends it wait for its
    /// reply.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.number += 1;
        for one in self.pending.iter_mut().filter(|one| one.executing) {
            one.outstanding.push(self.number);
        }
        self.number
    }

    /// Handles the RESET event of a `system_reset`.
    pub(crate) fn on_reset(&mut self) {
        self.pending.iter_mut().for_each(|one| one.was_reset = true);
    }

    /// Handles a failed save of the guest's state.
    pub(crate) fn on_not_saved(&mut self, refusal: Refusal) {
        self.not_saved = Some(refusal);
    }

    /// Requests a re-execution. Returns whether it is possible now: pending requests are answered
    /// first.
    pub(crate) fn request_reexec(&mut self) -> bool {
        self.reexec = !self.is_empty();
        !self.reexec
    }

    /// Returns whether a re-execution was requested and is possible now.
    pub(crate) fn take_reexec(&mut self) -> bool {
        self.is_empty() && std::mem::take(&mut self.reexec)
    }

    /// Removes and returns the requests that satisfy `answered`.
    fn take(&mut self, answered: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let (taken, kept) = std::mem::take(&mut self.pending).into_iter().partition(answered);
        self.pending = kept;
        taken
    }

    /// Whether no request is pending.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Handles the reply to a command, or its timeout.
    pub(crate) fn on_executed(&mut self, executed: Executed) {
        let Executed { number, what, done } = executed;
        match done {
            Ok(()) => {
                for one in &mut self.pending {
                    one.outstanding.retain(|other| *other != number);
                }
            }
            // The state is read again over the next connection, unless QEMU has exited.
            Err(qmp::Error::Closed) => {
                for one in &mut self.pending {
                    one.lost |= one.outstanding.contains(&number);
                    one.outstanding.retain(|other| *other != number);
                }
            }
            Err(error) => {
                let refusal = qmp_refusal(what, &error);
                for one in self.take(|one| one.outstanding.contains(&number)) {
                    let _ = one.reply.send(Err(refusal.clone()));
                }
            }
        }
    }

    /// Answers every request that is decided in this state of the life machine. `leftover` is what
    /// remains of QEMU if the run ends now, `last` is the last end of the VM.
    pub(crate) fn answer(&mut self, state: &State, leftover: Leftover, last: Option<&End>) {
        let mut kept = Vec::new();
        for one in std::mem::take(&mut self.pending) {
            match self.outcome(&one, state, leftover, last) {
                Some(outcome) => drop(one.reply.send(outcome)),
                None => kept.push(one),
            }
        }
        self.pending = kept;
    }

    /// Answers the requests whose deadline is before `now`.
    pub(crate) fn answer_overdue(&mut self, now: Instant) {
        for one in self.take(|one| one.until <= now) {
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
    }

    /// Returns the result of a request in this state; `None` if undecided.
    fn outcome(
        &self,
        one: &Pending,
        state: &State,
        leftover: Leftover,
        last: Option<&End>,
    ) -> Option<Result<(), Refusal>> {
        if one.executing {
            return None;
        }
        let replied = one.outstanding.is_empty();
        let not_now = |word| Some(Err(Refusal::NotNow(word)));
        let failed = |code, why: &str| Some(Err(Refusal::Failed(code, why.to_owned())));
        match (one.command, state) {
            (Command::Stop { .. } | Command::Terminate, State::Ended) => match leftover {
                Leftover::None => Some(Ok(())),
                Leftover::MayRun => failed(ErrorCode::QemuLeft, QEMU_LEFT),
            },
            (Command::Terminate, _)
            | (Command::Stop { .. }, State::Starting(_) | State::Canceling { .. }) => None,
            // QEMU is adopted, and its guest was asked.
            (Command::Stop { .. } | Command::Reboot, _) => Some(Ok(())),
            (
                Command::Suspend,
                State::Suspending(_) | State::Quitting { .. } | State::Killing { .. },
            ) => None,
            (Command::Suspend, State::Ended) => match last {
                Some(end) if end.reason == "suspended" => Some(Ok(())),
                Some(end) => failed(ErrorCode::NotSuspended, &end.detail),
                None => not_now("stopping"),
            },
            (Command::Suspend, State::Running | State::Paused(_)) => {
                let canceled = || {
                    let why = "the save was canceled".to_owned();
                    Refusal::Failed(ErrorCode::NotSuspended, why)
                };
                Some(Err(self.not_saved.clone().unwrap_or_else(canceled)))
            }
            // A relaunch replaces the machine to reset.
            (Command::Reset, State::Starting(_)) => Some(Ok(())),
            (Command::Reset, State::Quitting { then: life::AfterQemu::Relaunch, .. }) => None,
            (_, State::Starting(_)) => not_now("starting"),
            (
                _,
                State::Canceling { .. }
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
            (Command::Pause, State::Running) => {
                failed(ErrorCode::NotNow, "the guest was resumed meanwhile")
            }
            (Command::Resume, State::Paused(_)) => {
                failed(ErrorCode::NotNow, "the guest was paused again")
            }
        }
    }
}

/// Whether an earlier QEMU process may be running that is not adopted yet.
fn is_adopting(state: &State) -> bool {
    matches!(
        state,
        State::Starting(Phase::FindingPrevious | Phase::Adopting)
            | State::Canceling { phase: Phase::FindingPrevious | Phase::Adopting, .. }
    )
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::{self, Receiver};

    use super::*;
    use crate::life::{AfterQemu, Boot, PauseReason, StopLadder};

    const PAUSED: State = State::Paused(PauseReason::Operator);
    const LIMIT: Duration = Duration::from_secs(30);

    type Client = Receiver<Result<(), Refusal>>;

    /// Adds a request whose step has sent one QMP command. Returns its number.
    fn requested(effects: &mut Effects, command: Command) -> (Client, u64) {
        let (reply, client) = oneshot::channel();
        assert!(effects.add(command, &State::Running, LIMIT, reply).is_none());
        let number = effects.next_number();
        effects.on_stepped();
        (client, number)
    }

    fn executed(number: u64, done: Result<(), qmp::Error>) -> Executed {
        Executed { number, what: "pause the guest", done }
    }

    fn end(reason: &str) -> End {
        let (reason, at) = (reason.to_owned(), String::new());
        End {
            reason,
            at,
            detail: "because".into(),
            code: None,
            hint: None,
            failed: false,
            console: vec![],
        }
    }

    fn quitting(then: AfterQemu) -> State {
        State::Quitting { kill_at: LIMIT, hurried: false, then }
    }

    #[tokio::test]
    async fn request_to_the_guest_is_answered_when_sent() {
        let mut effects = Effects::default();
        for command in [Command::Stop { timeout: None }, Command::Reboot] {
            let (reply, _client) = oneshot::channel();
            assert!(effects.add(command, &State::Running, LIMIT, reply).is_some());
        }
        assert!(effects.is_empty() && effects.deadline().is_none());
    }

    #[tokio::test]
    async fn pause_waits_for_reply_and_state() {
        let mut effects = Effects::default();
        let (mut client, number) = requested(&mut effects, Command::Pause);
        effects.answer(&PAUSED, Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.on_executed(executed(number, Ok(())));
        effects.answer(&PAUSED, Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
        assert!(effects.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_answered_while_its_step_is_executed() {
        let mut effects = Effects::default();
        let (reply, mut client) = oneshot::channel();
        effects.add(Command::Pause, &State::Running, LIMIT, reply);
        effects.answer(&PAUSED, Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.on_stepped();
        effects.answer(&PAUSED, Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn state_of_another_request_is_a_failure() {
        let mut effects = Effects::default();
        for (command, state) in [(Command::Pause, State::Running), (Command::Resume, PAUSED)] {
            let (mut client, number) = requested(&mut effects, command);
            effects.on_executed(executed(number, Ok(())));
            effects.answer(&state, Leftover::None, None);
            assert!(matches!(client.try_recv(), Ok(Err(Refusal::Failed(..)))), "{command:?}");
        }
    }

    #[tokio::test]
    async fn reply_to_another_command_does_not_count() {
        let mut effects = Effects::default();
        let (mut client, number) = requested(&mut effects, Command::Pause);
        let other = effects.next_number();
        assert_ne!(number, other);
        effects.on_executed(executed(other, Ok(())));
        effects.answer(&PAUSED, Leftover::None, None);
        assert!(client.try_recv().is_err());
    }

    #[tokio::test]
    async fn refusal_of_qemu_is_the_answer() {
        let mut effects = Effects::default();
        let (mut client, number) = requested(&mut effects, Command::Pause);
        let (command, class) = ("stop".into(), "GenericError".into());
        let refused = qmp::Error::Refused { command, class, desc: "busy".into() };
        effects.on_executed(executed(number, Err(refused)));
        let answer = client.try_recv().unwrap();
        assert!(
            matches!(&answer, Err(Refusal::Failed(_, why)) if why.contains("busy")),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn lost_reply_leaves_the_state_to_tell() {
        let mut effects = Effects::default();
        let (mut client, number) = requested(&mut effects, Command::Pause);
        effects.on_executed(executed(number, Err(qmp::Error::Closed)));
        // The state read over the next connection may resume the guest.
        effects.answer(&State::Running, Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.answer(&PAUSED, Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn reset_waits_for_its_event() {
        let mut effects = Effects::default();
        let (mut client, number) = requested(&mut effects, Command::Reset);
        effects.on_executed(executed(number, Ok(())));
        effects.answer(&State::Running, Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.on_reset();
        effects.answer(&State::Running, Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn reset_by_a_relaunch_is_done() {
        let mut effects = Effects::default();
        let (mut client, _) = requested(&mut effects, Command::Reset);
        effects.answer(&quitting(AfterQemu::Relaunch), Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.answer(&State::Starting(Phase::Preparing(Boot::Cold)), Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn vm_that_stops_or_starts_refuses() {
        let ladder = StopLadder { deadline: LIMIT, press_at: LIMIT, then: AfterQemu::Relaunch };
        for (state, word) in [
            (State::Stopping(ladder), "stopping"),
            (State::Ended, "stopping"),
            (State::Starting(Phase::Adopting), "starting"),
        ] {
            let mut effects = Effects::default();
            let (mut client, _) = requested(&mut effects, Command::Pause);
            effects.answer(&state, Leftover::None, None);
            assert_eq!(client.try_recv(), Ok(Err(Refusal::NotNow(word))), "{state:?}");
        }
    }

    #[tokio::test]
    async fn terminate_is_answered_at_the_end() {
        let mut effects = Effects::default();
        let (mut client, _) = requested(&mut effects, Command::Terminate);
        effects.answer(&quitting(AfterQemu::Relaunch), Leftover::None, None);
        assert!(client.try_recv().is_err());
        effects.answer(&State::Ended, Leftover::None, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn stop_fails_if_qemu_may_run() {
        for command in [Command::Terminate, Command::Stop { timeout: None }] {
            for leftover in [Leftover::None, Leftover::MayRun] {
                let mut effects = Effects::default();
                let (reply, mut client) = oneshot::channel();
                let adopting = State::Starting(Phase::Adopting);
                assert!(effects.add(command, &adopting, LIMIT, reply).is_none());
                effects.on_stepped();
                effects.answer(&adopting, Leftover::MayRun, None);
                assert!(client.try_recv().is_err());
                effects.answer(&State::Ended, leftover, None);
                let answer = client.try_recv().unwrap();
                match leftover {
                    Leftover::None => assert_eq!(answer, Ok(()), "{command:?}"),
                    Leftover::MayRun => {
                        assert_eq!(
                            answer,
                            Err(Refusal::Failed(ErrorCode::QemuLeft, QEMU_LEFT.into())),
                            "{command:?}"
                        );
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn stop_is_answered_once_qemu_is_adopted() {
        let mut effects = Effects::default();
        let (reply, mut client) = oneshot::channel();
        let stop = Command::Stop { timeout: None };
        effects.add(stop, &State::Starting(Phase::Adopting), LIMIT, reply);
        effects.on_stepped();
        effects.answer(&State::Running, Leftover::MayRun, None);
        assert_eq!(client.try_recv(), Ok(Ok(())));
    }

    #[tokio::test]
    async fn suspend_is_answered_by_how_the_run_ended() {
        for (last, expected) in [
            (Some(end("suspended")), Ok(())),
            (Some(end("killed")), Err(Refusal::Failed(ErrorCode::NotSuspended, "because".into()))),
            (None, Err(Refusal::NotNow("stopping"))),
        ] {
            let mut effects = Effects::default();
            let (mut client, _) = requested(&mut effects, Command::Suspend);
            effects.answer(&quitting(AfterQemu::Relaunch), Leftover::None, None);
            assert!(client.try_recv().is_err());
            effects.answer(&State::Ended, Leftover::None, last.as_ref());
            assert_eq!(client.try_recv(), Ok(expected));
        }
    }

    #[tokio::test]
    async fn failed_suspend_has_a_reason() {
        let mut effects = Effects::default();
        for (reason, expected) in [(None, "the save was canceled"), (Some("no space"), "no space")]
        {
            let (mut client, _) = requested(&mut effects, Command::Suspend);
            reason.into_iter().for_each(|why| {
                effects.on_not_saved(Refusal::Failed(ErrorCode::NotSuspended, why.to_owned()))
            });
            effects.answer(&State::Running, Leftover::None, None);
            assert_eq!(
                client.try_recv(),
                Ok(Err(Refusal::Failed(ErrorCode::NotSuspended, expected.into())))
            );
        }
    }

    #[tokio::test]
    async fn overdue_request_is_unconfirmed() {
        let mut effects = Effects::default();
        let (mut pause, _) = requested(&mut effects, Command::Pause);
        let (mut suspend, _) = requested(&mut effects, Command::Suspend);
        let first = effects.deadline().unwrap();
        assert!(first <= Instant::now() + EFFECT_LIMIT);
        effects.answer_overdue(first);
        assert!(matches!(pause.try_recv(), Ok(Err(Refusal::Unconfirmed(_)))));
        assert!(suspend.try_recv().is_err());
        effects.answer_overdue(effects.deadline().unwrap());
        assert!(matches!(suspend.try_recv(), Ok(Err(Refusal::Unconfirmed(_)))));
    }

    #[tokio::test]
    async fn reexec_waits_for_the_last_answer() {
        let mut effects = Effects::default();
        assert!(effects.request_reexec());
        assert!(!effects.take_reexec());
        let (_client, number) = requested(&mut effects, Command::Pause);
        assert!(!effects.request_reexec());
        assert!(!effects.take_reexec());
        effects.on_executed(executed(number, Ok(())));
        effects.answer(&PAUSED, Leftover::None, None);
        assert!(effects.take_reexec());
        assert!(!effects.take_reexec());
    }

    #[test]
    fn early_requests_wait_in_their_order() {
        let mut effects = Effects::default();
        let (reply, _client) = oneshot::channel();
        effects.on_early(Request::Status(reply));
        let (reply, _client) = oneshot::channel();
        effects.on_early(Request::RecentEvents(reply));
        let early = effects.take_early();
        assert!(matches!(early[..], [Request::Status(_), Request::RecentEvents(_)]));
        assert!(effects.take_early().is_empty());
    }
}
