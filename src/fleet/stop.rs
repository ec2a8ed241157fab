//! Asks a supervisor to end its VM, reports the progress, and waits for the end.

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

/// How long a supervisor that has closed its socket may keep the lock.
const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// How long the reply may follow the end of the events.
const REPLY_LIMIT: Duration = Duration::from_secs(1);
/// The poll interval of the lock.
const POLL: Duration = Duration::from_millis(5);

/// How long to wait for the next supervisor if one has ended and its QEMU process has not: systemd
/// starts one within this time.
const NEXT_SUPERVISOR: Duration = Duration::from_secs(1);
/// The interval of attempts to connect to the next supervisor.
const RETRY: Duration = Duration::from_millis(50);

/// Sends the command and returns when QEMU has ended. A supervisor may end while it adopts a QEMU
/// process that does not answer, and leave it running: the command is then sent to the next
/// supervisor. `is_alive` returns whether the QEMU process that ran before the command is running;
/// `None` if it is unknown whether one was running.
///
/// # Errors
/// Those of [`ask_down`]; `NotRunning` also if the supervisor has ended, QEMU is running, and there
/// is no other supervisor.
pub async fn end(
    paths: &VmPaths,
    command: Command,
    say: &mut dyn FnMut(&str),
    is_alive: impl Fn() -> Option<bool>,
) -> Result<(), client::Error> {
    let mut ended: Option<Instant> = None;
    let mut may_run = false;
    loop {
        match ask_down(&paths.control_socket(), command, true, say).await {
            Ok(()) => {
                lock_released(paths).await;
                (ended, may_run) = (Some(Instant::now()), false);
            }
            Err(error) if leaves_qemu(command, &error) => {
                lock_released(paths).await;
                (ended, may_run) = (Some(Instant::now()), true);
            }
            Err(client::Error::NotRunning) if ended.is_some() => sleep(RETRY).await,
            Err(error) => return Err(error),
        }
        match is_alive() {
            Some(false) => return Ok(()),
            None if !may_run => return Ok(()),
            Some(true) | None => {}
        }
        if ended.is_some_and(|at| at.elapsed() >= NEXT_SUPERVISOR) {
            return Err(client::Error::NotRunning);
        }
    }
}

/// Sends the command. With `wait`, passes every rung and the end to `say`, and returns when the
/// supervisor closes the connection.
///
/// # Errors
/// There is no supervisor, it refuses, a guest that was to be suspended keeps running, or the
/// supervisor ends and QEMU may be running.
pub async fn ask_down(
    socket: &Path,
    command: Command,
    wait: bool,
    say: &mut dyn FnMut(&str),
) -> Result<(), client::Error> {
    if !wait {
        return Client::connect(socket).await?.command(command).await;
    }
    // The subscription comes before the command, so that no event is missed.
    let mut watch = Client::connect(socket).await?.watch().await?;
    let mut client = Client::connect(socket).await?;
    // The reply comes when the VM is down, if that does not depend on the guest.
    let mut answer = std::pin::pin!(client.command(command));
    let (mut answered, mut qemu_left) = (false, None);
    loop {
        let event = tokio::select! {
            biased;
            event = watch.next() => event,
            done = &mut answer, if !answered => {
                match done {
                    // The last events are to be reported.
                    Err(error) if leaves_qemu(command, &error) => qemu_left = Some(error),
                    done => done.map_err(|error| not_suspended(command, error))?,
                }
                answered = true;
                continue;
            }
        };
        let Some(event) = event else { break };
        if let Some(text) = progress_text(&event) {
            say(text);
        }
        if command == Command::Suspend && event.event == "QVM_NOT_SUSPENDED" {
            let why = event.data.as_ref().and_then(|data| data["why"].as_str());
            let reason = why.unwrap_or_default().to_owned();
            // The reply follows the event and reports whether the host is at fault.
            let is_host_fault = !answered
                && tokio::time::timeout(REPLY_LIMIT, &mut answer)
                    .await
                    .is_ok_and(|done| done.is_err_and(|error| error.is_host_fault()));
            return Err(client::Error::NotSuspended { reason, is_host_fault });
        }
    }
    if answered {
        return qemu_left.map_or(Ok(()), Err);
    }
    match tokio::time::timeout(REPLY_LIMIT, answer).await {
        // The supervisor has ended, as requested.
        Ok(Ok(()) | Err(client::Error::Closed)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(not_suspended(command, error)),
    }
}

/// Whether the supervisor has ended, and QEMU may be running.
fn leaves_qemu(command: Command, error: &client::Error) -> bool {
    let is_failed = |error: &str| error == "io.qvm.Vm.Failed";
    matches!(command, Command::PowerOff { .. } | Command::Terminate)
        && matches!(error, client::Error::Refused { error, .. } if is_failed(error))
}

fn not_suspended(command: Command, error: client::Error) -> client::Error {
    match (command, error) {
        (Command::Suspend, client::Error::Refused { error, reason, .. })
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

fn progress_text(event: &Event) -> Option<&str> {
    let key = match event.event.as_str() {
        "QVM_STOP_RUNG" => "text",
        "QVM_END" => "detail",
        _ => return None,
    };
    event.data.as_ref()?.get(key)?.as_str()
}

/// Waits until the supervisor that ended its VM has released the lock, so that the next command
/// does not find it held. A new supervisor, or a lock that cannot be opened, ends the wait.
async fn lock_released(paths: &VmPaths) {
    if paths.lock().exists() {
        drop(lock_holder::acquire(paths).await);
    }
}

/// Waits until no supervisor holds the lock: the socket closes shortly before the process exits.
///
/// # Errors
/// The lock is held for longer than an ending supervisor needs.
pub async fn released(paths: &VmPaths) -> Result<(), lock::Error> {
    let mut waited = Duration::ZERO;
    while paths.lock().exists() {
        match Lock::acquire(&paths.lock()) {
            Ok(_) => break,
            Err(error) if waited >= EXIT_LIMIT => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
        }
        waited += POLL;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::ErrorCode;

    #[test]
    fn failed_stop_leaves_qemu() {
        let refused = |error: &str| client::Error::Refused {
            error: error.to_owned(),
            code: ErrorCode::Other,
            reason: String::new(),
        };
        let off = Command::PowerOff { timeout_sec: None };
        for command in [off, Command::Terminate] {
            assert!(leaves_qemu(command, &refused("io.qvm.Vm.Failed")));
            assert!(!leaves_qemu(command, &refused("io.qvm.Vm.NotNow")));
            assert!(!leaves_qemu(command, &client::Error::Closed));
        }
        assert!(!leaves_qemu(Command::Suspend, &refused("io.qvm.Vm.Failed")));
    }

    #[test]
    fn only_rungs_and_end_are_reported() {
        let event = |name: &str| Event {
            at: None,
            event: name.into(),
            data: Some(serde_json::json!({"text": "asked", "detail": "the end"})),
        };
        assert_eq!(progress_text(&event("QVM_STOP_RUNG")), Some("asked"));
        assert_eq!(progress_text(&event("QVM_END")), Some("the end"));
        assert_eq!(progress_text(&event("SHUTDOWN")), None);
        assert_eq!(progress_text(&Event { at: None, event: "QVM_END".into(), data: None }), None);
    }
}
