//! `qvm exec-stop-post`: what ExecStopPost= of a VM's unit does about a QEMU that its supervisor
//! left behind.

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

/// Between two starts that fail by the host. RestartSec= is far shorter, for the sake of a
/// supervisor that crashed.
const PAUSE: Duration = Duration::from_secs(2);
/// How often a guard looks, and how many times: much longer than a unit takes to be started again.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: u32 = 120;

/// How the supervisor ended (systemd.exec(5), `$SERVICE_RESULT`), and what that means for a QEMU
/// that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It crashed: the unit is restarted, and the next supervisor takes QEMU over. Unless it was
    /// being stopped, which nobody will do again.
    Crashed,
    /// The start failed by the host: the unit is restarted, and the start is not to count.
    ByHost,
    /// It failed, and the unit is restarted: with a new QEMU.
    Failed,
    /// The VM shall be down.
    Down,
}

impl Ended {
    /// By the environment that systemd gives to ExecStopPost=.
    pub fn read(env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let text = |key: &str| env(key).and_then(|value| value.into_string().ok());
        let result = text("SERVICE_RESULT").unwrap_or_else(|| "success".into());
        let has_exited = text("EXIT_CODE").is_some_and(|code| code == "exited");
        let status = text("EXIT_STATUS").filter(|_| has_exited);
        let code = status.and_then(|status| status.parse::<u8>().ok());
        match (result.as_str(), code) {
            ("signal" | "core-dump" | "watchdog" | "oom-kill" | "resources", _) => Self::Crashed,
            (_, Some(exit::HOST)) => Self::ByHost,
            ("success", _) | (_, Some(exit::NOT_RUNNING | exit::NO_ROOM | exit::INVALID)) => {
                Self::Down
            }
            // 101 is a panic; 200 and above are steps of systemd before it executes the supervisor
            // (systemd.exec(5)).
            ("exit-code", Some(code)) if code != exit::FAILED && code != exit::NOT_GONE => {
                Self::Crashed
            }
            _ => Self::Failed,
        }
    }
}

/// Leaves QEMU to the next supervisor, or sees to it that it is gone. `exe` is this program.
///
/// # Errors
/// A QEMU that should be gone still is there.
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
                Err(super::alone(&name, qemu.pid()).code(exit::HOST))
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
                    info!("QEMU, pid {}, goes on: the next supervisor takes it over", qemu.pid());
                    match service::restarts(&name, scope).await {
                        Some(restarts) => guard(&name, exe, restarts),
                        None => warn!("QEMU would keep running after the unit is stopped"),
                    }
                }
                Ok(_) => take_up_file(&name, scope).await,
                // The next supervisor refuses to start, and says so in its status.
                Err(error) => return Err(super::unknown(&error, &name)),
            }
            Ok(())
        }
        Ended::ByHost => {
            take_up_file(&name, scope).await;
            tokio::time::sleep(PAUSE).await;
            Ok(())
        }
        Ended::Failed => {
            let done = down(settings).await;
            if !service::is_stopping(&name, scope).await {
                take_up_file(&name, scope).await;
            }
            done
        }
        Ended::Crashed | Ended::Down => down(settings).await,
    }
}

/// systemd starts the unit again by the drop-in that it has. Where the VM file is newer, the new
/// QEMU may need what only a new drop-in opens: disks elsewhere, the host's network.
async fn take_up_file(name: &VmName, scope: Scope) {
    let taken_up = match Unit::find(name, scope).await {
        Ok(Some(unit)) => unit.refresh().await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = taken_up {
        warn!(
            "the unit is started again as it was made from an earlier VM file: {}",
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

/// Waits until the unit has a supervisor again, or will not: whether QEMU has nobody any more,
/// because the unit was stopped meanwhile. One that crashed too often keeps its guest; `qvm list`
/// tells that it has no supervisor.
async fn is_orphan(settings: &Settings, scope: Scope, restarts: u32) -> bool {
    let name = &settings.name;
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        if Lock::holder(&settings.paths().lock()).is_some() {
            return false;
        }
        match service::after_crash(name, scope, restarts).await {
            Some(After::Restarted) => {}
            Some(After::Stopped) => return true,
            Some(After::GivenUp) => {
                warn!(
                    "the supervisor crashed too often: QEMU goes on without one, until `qvm start {name}`"
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
    fn by_how_the_supervisor_ended() {
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
            assert_eq!(Ended::read(&env), ended, "{result} {status}");
        }
        assert_eq!(Ended::read(&|_| None), Ended::Down);
    }
}
