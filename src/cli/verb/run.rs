//! `qvm run`: the supervisor, in the foreground.

use std::{ffi::OsString, path::Path};

use tracing::{debug, warn};

use crate::{
    cli::exit::{self, Failure},
    fleet::lock_holder,
    life::{Mode, StartFailure},
    sandbox::{capabilities, confine},
    spec::{self, HostSettings},
    store::{layout::VmPaths, running},
    supervisor::{outcome::Outcome, settings::Settings, supervise::supervise},
    sys::{file, lock::Lock, program::Program, signal},
    systemd::{service, unit::Scope},
    value::{Explain, VmName, chain},
};

/// The variable by which a re-executed supervisor finds its lock.
const LOCK_FD: &str = "QVM_LOCK_FD";

/// The arguments of `qvm run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
}

/// Runs the VM to its end and gives the exit code of that end.
///
/// # Errors
/// The VM file is not valid (78), the VM is supervised already, or nothing can be set up.
pub async fn run(
    settings: Settings,
    program: &Path,
    arguments: &[OsString],
    scope: Scope,
) -> Result<(), Failure> {
    confine::make_room();
    match capabilities::cut() {
        Ok(kept) => debug!("capabilities: {kept:?}"),
        // No guest has to do without its supervisor for that.
        Err(error) => warn!("cannot give up the capabilities that are not needed: {error}"),
    }
    let name = settings.name.clone();
    let in_unit = (settings.env)("NOTIFY_SOCKET").is_some();
    let done = run_to_its_end(settings, program, arguments).await;
    if in_unit
        && done.as_ref().is_err_and(|failure| failure.exit_code() == exit::HOST)
        && let Err(error) = service::forget_starts(&name, scope).await
    {
        warn!("this start counts for the unit's limit: {}", chain(&error));
    }
    done
}

async fn run_to_its_end(
    settings: Settings,
    program: &Path,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let (name, paths) = (settings.name.clone(), settings.paths());
    // Where the host is at fault, another try may help.
    let subject = |failure: Failure| failure.about(&name);
    let file = settings.layout.vm_file(&name);
    let host = HostSettings::load(&settings.layout.host_settings());
    let loaded = match file.try_exists() {
        Ok(true) => {
            let loaded = spec::load_with_text(&file).and_then(|loaded| host.map(|_| loaded));
            loaded.map_err(|e| Failure::invalid(&e))
        }
        Ok(false) => {
            let text = format!("there is no VM file `{}`", file.display());
            Err(subject(Failure::new(exit::NOT_RUNNING, text)))
        }
        Err(error) => {
            let text = format!("cannot read the VM file `{}`: {error}", file.display());
            Err(subject(Failure::new(exit::HOST, text)))
        }
    };
    let (vm, text) = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => {
            // What became of the file since is no reason to give up a guest that runs.
            let found = running::find(&paths).map_err(|error| super::unknown(&error, &name))?;
            if !found.is_running() {
                return Err(failure);
            }
            let booted = crate::store::vm_file_copies::booted(&paths, &name, &file);
            let booted = booted.ok_or_else(|| failure.clone().code(exit::HOST))?;
            warn!("the guest runs on by the VM file that it was started from:\n{failure}");
            booted
        }
    };
    let passed_on = (settings.env)(LOCK_FD).and_then(|number| number.parse().ok());
    let lock = match passed_on.and_then(|number| Lock::inherited(number, &paths.lock())) {
        Some(lock) => lock,
        None => lock_holder::take(&paths).await.map_err(|e| subject(Failure::explained(&e)))?,
    };
    // The code of a fault of the VM has the unit's ExecStopPost= end its QEMU.
    let host_fault = |failure: Failure, is_known: bool| {
        subject(failure.host_fault_if(is_known || may_be_running(&paths)))
    };
    file::make_dir(&paths.state)
        .map_err(|e| host_fault(Failure::of(&e).hint(e.hint()), e.is_host_fault()))?;
    match supervise(settings, vm, text, Mode::Run).await {
        Ok(Outcome::Exit(0)) => Ok(()),
        // The end has been logged with all that is known of it.
        Ok(Outcome::Exit(code)) => Err(Failure::quiet(code)),
        Ok(Outcome::NotStarted(StartFailure { fault, why })) => {
            Err(subject(Failure::new(fault.exit_code(), why)))
        }
        Ok(Outcome::Reexec) => {
            let failed = |failure: Failure| host_fault(failure, false);
            let number = lock.pass_on().map_err(|e| failed(Failure::of(&e)))?;
            signal::block().map_err(|e| failed(Failure::of(&e)))?;
            let next = Program::new(program).args(arguments.iter().skip(1));
            let error = next.env(LOCK_FD, number.to_string()).exec();
            let text = format!("cannot execute `{}`: {error}", program.display());
            Err(failed(Failure::new(exit::FAILED, text)))
        }
        Err(e) => Err(host_fault(Failure::of(&e).hint(e.hint()), e.is_host_fault())),
    }
}

/// Whether a QEMU process of the VM is running, or it is not known whether one is.
fn may_be_running(paths: &VmPaths) -> bool {
    running::find(paths).map_or(true, |found| found.is_running())
}
