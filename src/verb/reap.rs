//! `qvm reap`: what is left to do after a unit has stopped, as its `ExecStopPost=` (systemd.service(5)).

use std::{ffi::OsString, process::Command, time::Duration};

use tracing::{info, warn};

use crate::{
    exit::{self, Failure},
    host::{lock::Lock, pidfd::Signal},
    plan::unit,
    run::{
        Settings,
        adopt::{self, Found},
        supervise::{Left, supervise},
    },
    spec,
    value::VmName,
};

/// Before a start that the host prevented is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// What `qvm reap` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    pub name: VmName,
}

/// What systemd says of the stop (systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// `SERVICE_RESULT`.
    result: String,
    /// `EXIT_STATUS`.
    status: String,
    /// It is a user's manager.
    user: bool,
}

impl Said {
    /// What the environment says.
    pub fn by(env: &dyn Fn(&str) -> Option<OsString>, user: bool) -> Self {
        let text = |key: &str| env(key).and_then(|v| v.into_string().ok()).unwrap_or_default();
        Self { result: text("SERVICE_RESULT"), status: text("EXIT_STATUS"), user }
    }

    /// The supervisor crashed: the next one adopts what it left.
    fn is_crash(&self) -> bool {
        matches!(self.result.as_str(), "signal" | "core-dump" | "watchdog" | "oom-kill")
    }

    /// The host kept the VM from starting.
    fn is_the_hosts(&self) -> bool {
        self.result == "exit-code" && self.status == exit::HOST.to_string()
    }
}

/// Stops a QEMU that a real stop has left behind; leaves one that a crash has left. Lets causes of the host's not use
/// up the unit's start limit.
///
/// # Errors
/// QEMU cannot be stopped.
pub async fn run(settings: Settings, said: &Said) -> Result<(), Failure> {
    let name = settings.name.clone();
    if said.is_the_hosts() {
        std::thread::sleep(PAUSE);
        forgive(&name, said.user);
    }
    let Found::Alive(qemu, _) = adopt::find(&settings.paths()) else { return Ok(()) };
    if said.is_crash() {
        info!("QEMU, pid {}, goes on: the next supervisor takes it over", qemu.pid());
        return Ok(());
    }
    let subject = |failure: Failure| failure.about(&name);
    let lock = Lock::acquire(&settings.paths().lock());
    let _lock = lock.map_err(|e| subject(Failure::of(&e).hint(e.hint())))?;
    info!("QEMU, pid {}, was left behind, and is stopped now", qemu.pid());
    // As it was started, and not as its file is by now, if that is there at all.
    let file = settings.layout.vm_file(&name);
    let text = std::fs::read_to_string(settings.paths().booted()).unwrap_or_default();
    let mut user_data = |path: &std::path::Path| std::fs::read(path);
    let Ok(vm) = spec::read(&name, &file, &text, &mut user_data) else {
        warn!("what QEMU was started from cannot be read: SIGTERM, which it takes as a power cut");
        let sent = qemu.signal(Signal::TERM);
        sent.map_err(|e| subject(Failure::of(&e)))?;
        qemu.wait().await;
        return Ok(());
    };
    match supervise(settings, vm, text).await {
        Ok(Left::Exit(0) | Left::Reexec) => Ok(()),
        Ok(Left::Exit(code)) => Err(Failure::quiet(code)),
        Ok(Left::NotStarted { code, why }) => Err(subject(Failure::new(code, why))),
        Err(error) => Err(subject(Failure::of(&error).hint(error.hint()))),
    }
}

/// Resets the unit's start limit, as `systemctl reset-failed` does (systemctl(1)).
fn forgive(name: &VmName, user: bool) {
    let mut command = Command::new("systemctl");
    if user {
        command.arg("--user");
    }
    match command.args(["reset-failed", &unit::name(name)]).status() {
        Ok(status) if status.success() => {}
        Ok(status) => warn!("`systemctl reset-failed` failed: {status}"),
        Err(error) => warn!("cannot run `systemctl`: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_and_causes_of_the_host_are_told_apart_from_stops() {
        let said = |result: &'static str, status: &'static str| {
            let env = move |key: &str| match key {
                "SERVICE_RESULT" => Some(result.into()),
                "EXIT_STATUS" => Some(status.into()),
                _ => None,
            };
            Said::by(&env, false)
        };
        for (result, status, crash, hosts) in [
            ("success", "0", false, false),
            ("exit-code", "1", false, false),
            ("exit-code", "75", false, true),
            ("timeout", "KILL", false, false),
            ("signal", "KILL", true, false),
            ("core-dump", "ABRT", true, false),
            ("watchdog", "ABRT", true, false),
            ("oom-kill", "KILL", true, false),
            ("", "", false, false),
        ] {
            let said = said(result, status);
            assert_eq!((said.is_crash(), said.is_the_hosts()), (crash, hosts), "{result} {status}");
        }
    }
}
