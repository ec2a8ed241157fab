//! Asks a supervisor to end its VM, tells how that goes, and sees it gone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::lock_holder;
use crate::{
    control::{
        client::{self, Client},
        types::{Command, Event},
    },
    store::layout::VmPaths,
    sys::lock::{self, Lock},
    value::Explain,
};

/// How long a supervisor that has closed its socket may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(10);
/// How long the answer may be on its way once the events have ended.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// Between two looks whether it is.
const POLL: Duration = Duration::from_millis(5);

/// How long the next supervisor is waited for after one has ended and its QEMU process has not:
/// systemd starts one within this time.
const NEXT_SUPERVISOR: Duration = Duration::from_secs(1);
/// Between two attempts to connect to the next supervisor.
const RETRY: Duration = Duration::from_millis(50);

/// Gives the command and returns when QEMU is gone. A supervisor may end while it adopts a QEMU
/// process that does not answer, and leave it running: the next supervisor is given the command then.
/// `is_alive` tells whether the QEMU process that ran before the command is running.
///
/// # Errors
/// As of [`ask_down`]; `NotRunning` also where the supervisor has ended, QEMU is running, and there is
/// no other supervisor.
pub async fn end(
    paths: &VmPaths,
    command: Command,
    say: &mut dyn FnMut(&str),
    is_alive: impl Fn() -> bool,
) -> Result<(), client::Error> {
    let mut ended: Option<Instant> = None;
    loop {
        match ask_down(&paths.control_socket(), command, true, say).await {
            Ok(()) => {
                gone(paths).await;
                ended = Some(Instant::now());
            }
            Err(client::Error::NotRunning) if ended.is_some() => sleep(RETRY).await,
            Err(error) => return Err(error),
        }
        if !is_alive() {
            return Ok(());
        }
        if ended.is_some_and(|at| at.elapsed() >= NEXT_SUPERVISOR) {
            return Err(client::Error::NotRunning);
        }
    }
}

/// Gives the command. With `wait`, tells every rung and the end to `say`, and returns when the supervisor closes.
///
/// # Errors
/// There is no supervisor, it refuses, or a guest that was to be suspended goes on.
pub async fn ask_down(
    socket: &Path,
    command: Command,
    wait: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), client::Error> {
    if !wait {
        return Client::connect(socket).await?.command(command).await;
    }
    // Before the command, so that nothing is missed.
    let mut watch = Client::connect(socket).await?.watch().await?;
    let mut client = Client::connect(socket).await?;
    // Answered when the VM is down, where that does not depend on the guest.
    let mut answer = std::pin::pin!(client.command(command));
    let mut answered = false;
    loop {
        let event = tokio::select! {
            biased;
            event = watch.next() => event,
            done = &mut answer, if !answered => {
                done.map_err(|error| not_suspended(command, error))?;
                answered = true;
                continue;
            }
        };
        let Some(event) = event else { break };
        if let Some(text) = told(&event) {
            say(text);
        }
        if command == Command::Suspend && event.event == "QVM_NOT_SUSPENDED" {
            let why = event.data.as_ref().and_then(|data| data["why"].as_str());
            let reason = why.unwrap_or_default().to_owned();
            // The answer, which comes behind it, says whether the host is at fault.
            let is_host_fault = !answered
                && tokio::time::timeout(LAST_ANSWER, &mut answer)
                    .await
                    .is_ok_and(|done| done.is_err_and(|error| error.is_host_fault()));
            return Err(client::Error::NotSuspended { reason, is_host_fault });
        }
    }
    if answered {
        return Ok(());
    }
    match tokio::time::timeout(LAST_ANSWER, answer).await {
        // Its end is what was asked for.
        Ok(Ok(()) | Err(client::Error::Closed)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(not_suspended(command, error)),
    }
}

fn not_suspended(command: Command, error: client::Error) -> client::Error {
    match (command, error) {
        (Command::Suspend, client::Error::Refused { error, reason })
            if error == "io.qvm.Vm.Failed" =>
        {
            client::Error::NotSuspended { reason, is_host_fault: false }
        }
        (Command::Suspend, client::Error::HostFault { reason }) => {
            client::Error::NotSuspended { reason, is_host_fault: true }
        }
        (_, error) => error,
    }
}

fn told(event: &Event) -> Option<&str> {
    let key = match event.event.as_str() {
        "QVM_STOP_RUNG" => "text",
        "QVM_END" => "detail",
        _ => return None,
    };
    event.data.as_ref()?.get(key)?.as_str()
}

/// Waits until the supervisor that ended its VM has released the lock of the VM, so that what is
/// called next does not meet it. A new supervisor, and a lock that may not be opened, end the wait.
async fn gone(paths: &VmPaths) {
    if paths.lock().exists() {
        drop(lock_holder::take(paths).await);
    }
}

/// Waits until no supervisor holds the VM: the socket closes a moment before the process is gone.
///
/// # Errors
/// Somebody holds it for longer than a supervisor that ends.
pub async fn released(paths: &VmPaths) -> Result<(), lock::Error> {
    let mut waited = Duration::ZERO;
    while paths.lock().exists() {
        match Lock::acquire(&paths.lock()) {
            Ok(_) => break,
            Err(error) if waited >= LAST_BREATH => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
        waited += POLL;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_and_the_end_are_told_and_nothing_else() {
        let event = |name: &str| Event {
            at: None,
            event: name.into(),
            data: Some(serde_json::json!({"text": "asked", "detail": "the end"})),
        };
        assert_eq!(told(&event("QVM_STOP_RUNG")), Some("asked"));
        assert_eq!(told(&event("QVM_END")), Some("the end"));
        assert_eq!(told(&event("SHUTDOWN")), None);
        assert_eq!(told(&Event { at: None, event: "QVM_END".into(), data: None }), None);
    }
}
