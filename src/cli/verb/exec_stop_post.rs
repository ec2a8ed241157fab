//! `qvm exec-stop-post`: ExecStopPost= of a VM's unit, which handles a QEMU process that its
//! supervisor left running.

use std::{ffi::OsString, path::Path, time::Duration};

use tracing::{info, warn};

use crate::{
    cli::exit::{self, Failure},
    fleet::orphans,
    store::running::{self, PreviousQemu},
    supervisor::settings::Settings,
    sys::{lock::Lock, program::Program},
    systemd::{
        service::{self, After, Unit},
        unit::Scope,
    },
    value::{VmName, chain},
};

/// The arguments of `qvm exec-stop-post`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
    /// Wait for the restart of a crashed unit with this restart count; end QEMU if the unit is
    /// stopped instead
    #[arg(long, value_name = "RESTARTS")]
    pub guard: Option<u32>,
    /// Only report whether the VM is proven to be stopped: exit code 0, or 75 if QEMU is or may be
    /// running
    #[arg(long, conflicts_with = "guard")]
    pub probe: bool,
}

/// The pause before a restart after a host fault. RestartSec= is far shorter, for a supervisor that
/// crashed.
const PAUSE: Duration = Duration::from_secs(2);
/// The poll interval of a guard.
const POLL: Duration = Duration::from_millis(250);
/// The number of polls: much longer than a restart of the unit takes.
const POLLS: u32 = 120;

/// How the supervisor ended (`$SERVICE_RESULT` of systemd.exec(5)), and what follows for a running
/// QEMU process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The supervisor crashed: the unit is restarted, and the next supervisor adopts QEMU. If the
    /// unit was being stopped, no process continues the stop.
    Crashed,
    /// A host fault failed the start: the unit is restarted, and the start does not count for its
    /// limit.
    ByHost,
    /// The supervisor failed; the unit is restarted with a new QEMU process.
    Failed,
    /// The VM is to be stopped.
    Down,
}

impl Ended {
    /// Reads the variables that systemd sets for ExecStopPost=.
    pub fn from_environment(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let text = |key: &str| env(key).and_then(|value| value.into_string().ok());
        let result = text("SERVICE_RESULT").unwrap_or_else(|| "success".into());
        let has_exited = text("EXIT_CODE").is_some_and(|code| code == "exited");
        let status = text("EXIT_STATUS").filter(|_| has_exited);
        let code = status.and_then(|status| status.parse::<u8>().ok());
        match (result.as_str(), code) {
            ("signal" | "core-dump" | "watchdog" | "oom-kill" | "resources", _) => Self::Crashed,
            (_, Some(exit::HOST)) => Self::ByHost,
            ("success", _) | (_, Some(exit::NOT_RUNNING | exit::NO_MEMORY | exit::INVALID)) => {
                Self::Down
            }
            // 101 is a panic; 200 and above are failures of systemd before it executes the
            // supervisor (systemd.exec(5)).
            ("exit-code", Some(code)) if code != exit::FAILED && code != exit::NOT_ENDED => {
                Self::Crashed
            }
            _ => Self::Failed,
        }
    }
}

/// Leaves QEMU to the next supervisor, or ends it. `exe` is this program.
///
/// # Errors
/// QEMU should have ended and is still running.
pub async fn run(
    args: &Args,
    settings: Settings,
    ended: Ended,
    scope: Scope,
    exe: &Path,
) -> Result<(), Failure> {
    let name = settings.name.clone();
    if args.probe {
        return match running::find(&settings.paths()) {
            Ok(PreviousQemu::Running(qemu, _)) => {
                Err(super::without_supervisor(&name, qemu.pid()).exit(exit::HOST))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(super::unknown(&error, &name)),
        };
    }
    if let Some(restarts) = args.guard {
        return match is_orphan(&settings, scope, restarts).await {
            true => down(settings).await,
            false => Ok(()),
        };
    }
    match ended {
        Ended::Crashed if !service::is_stopping(&name, scope).await => {
            match running::find(&settings.paths()) {
                Ok(PreviousQemu::Running(qemu, _)) => {
                    info!("QEMU (pid {}) keeps running: the next supervisor adopts it", qemu.pid());
                    match service::restarts(&name, scope).await {
                        Some(restarts) => guard(&name, exe, restarts),
                        None => warn!("QEMU would keep running after the unit is stopped"),
                    }
                }
                Ok(_) => refresh_unit(&name, scope).await,
                // The next supervisor refuses to start, and its status has the reason.
                Err(error) => return Err(super::unknown(&error, &name)),
            }
            Ok(())
        }
        Ended::ByHost => {
            refresh_unit(&name, scope).await;
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
        Ended::Failed => {
            let done = down(settings).await;
            if !service::is_stopping(&name, scope).await {
                refresh_unit(&name, scope).await;
            }
            done
        }
        Ended::Crashed | Ended::Down => down(settings).await,
    }
}

/// systemd restarts the unit with its loaded drop-in. If the VM file is newer, the new QEMU process
/// may require the new drop-in: access to other disks, or to the host's network.
async fn refresh_unit(name: &VmName, scope: Scope) {
    let taken_up = match Unit::find(name, scope).await {
        Ok(Some(unit)) => unit.refresh().await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = taken_up {
        warn!(
            "cannot update the unit; it starts with the settings of an earlier VM file: {}",
            chain(&error)
        );
    }
}

/// If the unit is stopped before the next supervisor starts, no process shuts the guest down, and
/// systemd does not run `ExecStopPost=` again: a guard process waits for that case.
fn guard(name: &VmName, exe: &Path, restarts: u32) {
    let guard = Program::new(exe).args(["exec-stop-post", name.as_str()]);
    let guard = guard.arg("--guard").arg(restarts.to_string());
    if let Err(error) = guard.spawn_in_background(None) {
        warn!("QEMU would keep running after the unit is stopped: {error}");
    }
}

/// Waits until the unit has a supervisor again, or will have none. Returns true if the unit was
/// stopped meanwhile, so that QEMU has no supervisor. After too many crashes QEMU keeps running;
/// `qvm list` reports it without a supervisor.
async fn is_orphan(settings: &Settings, scope: Scope, restarts: u32) -> bool {
    let name = &settings.name;
    for _ in 0..POLLS {
        tokio::time::sleep(POLL).await;
        if Lock::holder(&settings.paths().lock()).is_some() {
            return false;
        }
        match service::after_crash(name, scope, restarts).await {
            Some(After::Restarted) => {}
            Some(After::Stopped) => return true,
            Some(After::GivenUp) => {
                warn!(
                    "the supervisor crashed too often: QEMU runs without one until \
                     `qvm start {name}`"
                );
                return false;
            }
            None => return false,
        }
    }
    false
}

async fn down(settings: Settings) -> Result<(), Failure> {
    let name = settings.name.clone();
    orphans::end(settings).await.map_err(|error| super::not_ended(&error, &name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_result_decides_about_qemu() {
        for (result, code, status, ended) in [
            ("signal", "killed", "KILL", Ended::Crashed),
            ("core-dump", "dumped", "SEGV", Ended::Crashed),
            ("watchdog", "dumped", "ABRT", Ended::Crashed),
            ("oom-kill", "killed", "KILL", Ended::Crashed),
            ("success", "exited", "0", Ended::Down),
            ("timeout", "killed", "KILL", Ended::Failed),
            ("exit-code", "exited", "1", Ended::Failed),
            ("exit-code", "exited", "70", Ended::Failed),
            ("exit-code", "exited", "2", Ended::Crashed),
            ("exit-code", "exited", "101", Ended::Crashed),
            ("exit-code", "exited", "226", Ended::Crashed),
            ("resources", "", "", Ended::Crashed),
            ("exit-code", "exited", "3", Ended::Down),
            ("exit-code", "exited", "69", Ended::Down),
            ("exit-code", "exited", "78", Ended::Down),
            ("exit-code", "exited", "75", Ended::ByHost),
        ] {
            let env = |key: &str| {
                Some(match key {
                    "SERVICE_RESULT" => result.into(),
                    "EXIT_CODE" => code.into(),
                    "EXIT_STATUS" => status.into(),
                    _ => return None,
                })
            };
            assert_eq!(Ended::from_environment(&env), ended, "{result} {status}");
        }
        assert_eq!(Ended::from_environment(&|_| None), Ended::Down);
    }
}
