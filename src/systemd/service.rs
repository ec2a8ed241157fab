//! The systemd unit of a VM, through `systemctl`.

use std::{path::Path, time::Duration};

use super::unit::{self, DROP_IN, Scope};
use crate::{
    sys::{
        program::{self, Output, Program},
        user_runtime_dir,
    },
    value::{ErrorCode, Explain, VmName},
};

/// The limit for a query: a hung service manager must not block the start or stop of a guest.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The limit for the query whether the host shuts down. systemd stops all units at that time, and a
/// wrong answer would shut down a guest whose state should be saved.
pub const HOST_DOWN_LIMIT: Duration = Duration::from_secs(60);
/// The limit for a daemon-reload with its generators.
const RELOAD_LIMIT: Duration = Duration::from_secs(90);
/// How long a bind mount may take: longer than systemctl waits itself
/// (sd_bus_get_method_call_timeout(3)).
const BIND_LIMIT: Duration = Duration::from_secs(30);

/// Why `systemctl` failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be run, or prints too much.
    #[error(transparent)]
    Run(program::Error),
    /// It did not exit in time.
    #[error(
        "`systemctl {arguments}` did not end within {} s: systemd does not answer",
        limit.as_secs()
    )]
    Silent {
        /// Its arguments.
        arguments: String,
        /// The limit.
        limit: Duration,
    },
    /// It failed.
    #[error("`systemctl {arguments}` failed: {stderr}")]
    Failed {
        /// Its arguments.
        arguments: String,
        /// Its error message.
        stderr: String,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Run(error) => error.code(),
            Self::Silent { .. } => ErrorCode::SystemdSilent,
            Self::Failed { .. } => ErrorCode::SystemctlFailed,
        })
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }
}

/// The unit of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    scope: Scope,
    name: String,
    /// The VM file has changed since the unit was loaded, or the unit has no drop-in.
    stale: bool,
    /// Whether the unit has failed, possibly at its start limit.
    failed: bool,
}

impl Unit {
    /// Returns the unit, if the manager has one; `None` without a manager.
    ///
    /// # Errors
    /// The manager does not answer, so it is unknown whether it owns the unit.
    pub async fn find(vm: &VmName, scope: Scope) -> Result<Option<Self>, Error> {
        let name = unit::unit_name(vm);
        let properties = "--property=LoadState,ActiveState,NeedDaemonReload,DropInPaths";
        match systemctl(scope, &["show", properties, &name]).await {
            Ok(shown) => Ok(Self::read(scope, name, &shown)),
            Err(error @ Error::Silent { .. }) => Err(error),
            Err(Error::Run(_) | Error::Failed { .. }) => Ok(None),
        }
    }

    fn read(scope: Scope, name: String, shown: &str) -> Option<Self> {
        let is = |line: &str| shown.lines().any(|shown| shown == line);
        let drop_ins = shown.lines().find_map(|line| line.strip_prefix("DropInPaths="));
        let made = drop_ins.is_some_and(|all| all.contains(DROP_IN));
        is("LoadState=loaded").then(|| Self {
            scope,
            name,
            stale: is("NeedDaemonReload=yes") || !made,
            failed: is("ActiveState=failed"),
        })
    }

    /// Reloads the manager so that it uses the current VM file: order, timeouts, weights.
    ///
    /// # Errors
    /// The reload failed.
    pub async fn refresh(&self) -> Result<(), Error> {
        match self.stale {
            true => run(self.scope, &["daemon-reload"], Some(RELOAD_LIMIT)).await.map(drop),
            false => Ok(()),
        }
    }

    /// Starts the unit, also after its start limit; with `wait`, returns when the guest runs.
    ///
    /// # Errors
    /// The start failed.
    pub async fn start(&self, wait: bool) -> Result<(), Error> {
        if self.failed {
            systemctl(self.scope, &["reset-failed", &self.name]).await?;
        }
        match wait {
            // No limit of qvm's own: systemd has TimeoutStartSec=.
            true => run(self.scope, &["start", &self.name], None).await.map(drop),
            false => {
                let words = ["start", "--no-block", &self.name];
                systemctl(self.scope, &words).await.map(drop)
            }
        }
    }
}

/// Resets the start counter of a unit, so that host faults do not reach its start limit. Called by
/// the unit itself during the start: in ExecStopPost=, systemd would treat the failed start as a
/// success.
///
/// # Errors
/// The manager failed.
pub async fn forget_starts(vm: &VmName, scope: Scope) -> Result<(), Error> {
    systemctl(scope, &["reset-failed", &unit::unit_name(vm)]).await.map(drop)
}

/// Bind mounts a directory in the running unit of a VM with the permissions of the host.
///
/// # Errors
/// The manager failed: it has no such unit, or the unit has no mount namespace.
pub fn bind(vm: &VmName, scope: Scope, directory: &Path) -> Result<(), Error> {
    // Called on the thread that prepares the start.
    let unit = unit::unit_name(vm);
    let program = command(scope).arg("bind").arg(unit).args([directory, directory]);
    let output = program.time_limit(BIND_LIMIT).run();
    printed(output, "bind").map(drop)
}

/// Whether an operator is stopping the unit; `false` if that is unknown.
pub async fn is_stopping(vm: &VmName, scope: Scope) -> bool {
    let jobs = systemctl(scope, &["list-jobs", "--plain", "--no-legend"]).await.unwrap_or_default();
    has_stop_job(&jobs, &unit::unit_name(vm))
}

/// Whether the service manager is stopping: the host shuts down or reboots, or the user's last
/// session has ended.
///
/// # Errors
/// The manager does not answer within [`HOST_DOWN_LIMIT`], so it is unknown.
pub async fn host_goes_down(scope: Scope) -> Result<bool, Error> {
    let query = "is-system-running";
    let output = command(scope).arg(query).time_limit(HOST_DOWN_LIMIT).run_async().await;
    // The exit code is 1 for every state but `running`; the state is printed.
    let Output { stdout, stderr, .. } = ended(output, query)?;
    match stdout.trim() {
        "" | "unknown" => {
            Err(Error::Failed { arguments: query.to_owned(), stderr: stderr.trim().to_owned() })
        }
        state => Ok(state == "stopping"),
    }
}

/// The state of a unit after its supervisor crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The unit is running or will be restarted.
    Restarted,
    /// The unit was stopped.
    Stopped,
    /// The start limit is reached.
    GivenUp,
}

/// Returns the number of restarts (NRestarts=); `None` if it is unknown.
pub async fn restarts(vm: &VmName, scope: Scope) -> Option<u32> {
    let shown = systemctl(scope, &["show", "--property=NRestarts", &unit::unit_name(vm)]).await;
    property(&shown.ok()?, "NRestarts")?.parse().ok()
}

/// Returns the last exit code of the supervisor; `None` after a signal or if it is unknown.
pub async fn exit_code(vm: &VmName, scope: Scope) -> Option<u8> {
    let properties = "--property=ExecMainCode,ExecMainStatus";
    let shown = systemctl(scope, &["show", properties, &unit::unit_name(vm)]).await.ok()?;
    exited_with(&shown)
}

/// `CLD_EXITED` of waitid(2), which systemd prints as a number.
fn exited_with(shown: &str) -> Option<u8> {
    let exited = property(shown, "ExecMainCode")? == "1";
    exited.then(|| property(shown, "ExecMainStatus")?.parse().ok())?
}

/// Returns the state of the unit since its crash, when it had `restarts` restarts; `None` if it is
/// unknown.
pub async fn after_crash(vm: &VmName, scope: Scope, restarts: u32) -> Option<After> {
    let properties = "--property=ActiveState,NRestarts";
    let shown = systemctl(scope, &["show", properties, &unit::unit_name(vm)]).await.ok()?;
    After::read(&shown, restarts)
}

impl After {
    /// systemd counts a restart when it is due, and checks the limit only then: a unit that was
    /// stopped meanwhile is down without it. Result= does not help, since it stays that of the
    /// crash.
    fn read(shown: &str, restarts: u32) -> Option<Self> {
        let now: u32 = property(shown, "NRestarts")?.parse().ok()?;
        Some(match property(shown, "ActiveState")? {
            "inactive" | "failed" if now > restarts => Self::GivenUp,
            "inactive" | "failed" => Self::Stopped,
            _ => Self::Restarted,
        })
    }
}

fn property<'a>(shown: &'a str, name: &str) -> Option<&'a str> {
    shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

/// Lines with a job's number, unit, type and state.
fn has_stop_job(jobs: &str, unit: &str) -> bool {
    let words = |line: &str| line.split_whitespace().skip(1).take(2).eq([unit, "stop"]);
    jobs.lines().any(words)
}

async fn systemctl(scope: Scope, arguments: &[&str]) -> Result<String, Error> {
    run(scope, arguments, Some(ANSWER_LIMIT)).await
}

fn command(scope: Scope) -> Program {
    let program = Program::new("systemctl");
    if scope == Scope::System {
        return program;
    }
    match user_runtime_dir::unnamed() {
        Some(directory) => program.env("XDG_RUNTIME_DIR", directory).arg("--user"),
        None => program.arg("--user"),
    }
}

async fn run(scope: Scope, arguments: &[&str], limit: Option<Duration>) -> Result<String, Error> {
    let program = command(scope).args(arguments);
    let program = match limit {
        Some(limit) => program.time_limit(limit),
        None => program,
    };
    printed(program.run_async().await, &arguments.join(" "))
}

/// Returns the output of a run that ended in time, whatever its exit code is.
fn ended(output: Result<Output, program::Error>, arguments: &str) -> Result<Output, Error> {
    output.map_err(|error| match error {
        program::Error::TimedOut { limit, .. } => {
            Error::Silent { arguments: arguments.to_owned(), limit }
        }
        error => Error::Run(error),
    })
}

/// Returns the standard output of a successful run.
fn printed(output: Result<Output, program::Error>, arguments: &str) -> Result<String, Error> {
    match ended(output, arguments)? {
        Output { status, stdout, .. } if status.success() => Ok(stdout),
        Output { stderr, .. } => {
            Err(Error::Failed { arguments: arguments.to_owned(), stderr: stderr.trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(shown: &str) -> Option<(bool, bool)> {
        Unit::read(Scope::System, "qvm@web.service".into(), shown).map(|u| (u.stale, u.failed))
    }

    #[test]
    fn stop_job_of_the_unit() {
        let jobs = "  12 qvm@db.service   stop    running\n 7 qvm@web.service start waiting\n";
        assert!(has_stop_job(jobs, "qvm@db.service"));
        assert!(!has_stop_job(jobs, "qvm@web.service"));
        assert!(!has_stop_job("No jobs running.\n", "qvm@web.service"));
    }

    #[test]
    fn stopped_restarted_and_given_up_units_differ() {
        for (state, restarts, after) in [
            ("failed", 3, After::Stopped),
            ("inactive", 3, After::Stopped),
            ("failed", 4, After::GivenUp),
            ("activating", 3, After::Restarted),
            ("activating", 4, After::Restarted),
            ("active", 4, After::Restarted),
        ] {
            let shown = format!("NRestarts={restarts}\nActiveState={state}\n");
            assert_eq!(After::read(&shown, 3), Some(after), "{shown}");
        }
        assert_eq!(After::read("ActiveState=failed\n", 3), None);
    }

    #[test]
    fn exit_code_but_not_signal() {
        assert_eq!(exited_with("ExecMainCode=1\nExecMainStatus=69\n"), Some(69));
        assert_eq!(exited_with("ExecMainStatus=9\nExecMainCode=2\n"), None);
        assert_eq!(exited_with("ExecMainCode=0\nExecMainStatus=0\n"), None);
        assert_eq!(exited_with(""), None);
    }

    #[test]
    fn output_of_systemctl_show() {
        let drop_in =
            "DropInPaths=/run/systemd/generator/qvm@web.service.d/10-qvm.conf /etc/x.conf";
        let shown = |load: &str, active: &str, reload: &str, drop_in: &str| {
            format!(
                "LoadState={load}\nActiveState={active}\nNeedDaemonReload={reload}\n{drop_in}\n"
            )
        };
        assert_eq!(read(&shown("loaded", "inactive", "no", drop_in)), Some((false, false)));
        assert_eq!(read(&shown("loaded", "failed", "yes", drop_in)), Some((true, true)));
        assert_eq!(read(&shown("loaded", "active", "no", "DropInPaths=")), Some((true, false)));
        assert_eq!(read(&shown("not-found", "inactive", "no", "DropInPaths=")), None);
        assert_eq!(read(""), None);
    }
}
