//! `qvm run`: runs the supervisor in the foreground.

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
    value::{ErrorCode, Explain, VmName, chain},
};

/// The variable that passes the lock's descriptor to a re-executed supervisor.
const LOCK_FD: &str = "QVM_LOCK_FD";

/// The arguments of `qvm run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
}

/// Runs the VM and returns when it has ended; the failure has the exit code of that end.
///
/// # Errors
/// The VM file is invalid (78), the VM has a supervisor, or the preparation failed.
pub async fn run(
    settings: Settings,
    program: &Path,
    arguments: &[OsString],
    scope: Scope,
) -> Result<(), Failure> {
    confine::make_room();
    match capabilities::cut() {
        Ok(kept) => debug!("capabilities: {kept:?}"),
        // Not fatal: a guest must not lose its supervisor for this.
        Err(error) => warn!("cannot give up the capabilities that are not needed: {error}"),
    }
    let name = settings.name.clone();
    let in_unit = (settings.env)("NOTIFY_SOCKET").is_some();
    let done = run_to_its_end(settings, program, arguments).await;
    if in_unit
        && done.as_ref().is_err_and(|failure| failure.exit_code() == exit::HOST)
        && let Err(error) = service::forget_starts(&name, scope).await
    {
        warn!("cannot reset the unit's start counter: {}", chain(&error));
    }
    done
}

async fn run_to_its_end(
    settings: Settings,
    program: &Path,
    arguments: &[OsString],
) -> Result<(), Failure> {
    let (name, paths) = (settings.name.clone(), settings.paths());
    // A host fault; a retry may succeed.
    let subject = |failure: Failure| failure.about(&name);
    let file = settings.layout.vm_file(&name);
    let host = HostSettings::load(&settings.layout.host_settings());
    let loaded = match file.try_exists() {
        Ok(true) => {
            let loaded = spec::load_with_text(&file).and_then(|loaded| host.map(|_| loaded));
            loaded.map_err(|e| Failure::invalid(&e))
        }
        Ok(false) => {
            let text = format!("the VM file `{}` does not exist", file.display());
            Err(subject(Failure::new(ErrorCode::VmFileMissing, text)))
        }
        Err(error) => {
            let doing = format!("cannot read the VM file `{}`", file.display());
            Err(subject(Failure::from_io(&doing, &error).exit(exit::HOST)))
        }
    };
    let (vm, text) = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => {
            // A changed or missing VM file does not stop a running guest.
            let found = running::find(&paths).map_err(|error| super::unknown(&error, &name))?;
            if !found.is_running() {
                return Err(failure);
            }
            let booted = crate::store::vm_file_copies::booted(&paths, &name, &file);
            let booted = booted.ok_or_else(|| failure.clone().exit(exit::HOST))?;
            warn!(
                "cannot read the VM file; the guest keeps running with its earlier settings:\n\
                 {failure}"
            );
            booted
        }
    };
    let passed_on = (settings.env)(LOCK_FD).and_then(|number| number.parse().ok());
    let lock = match passed_on.and_then(|number| Lock::inherited(number, &paths.lock())) {
        Some(lock) => lock,
        None => lock_holder::acquire(&paths).await.map_err(|e| subject(Failure::explained(&e)))?,
    };
    // With the exit code of a VM fault, ExecStopPost= of the unit would end QEMU.
    let host_fault = |failure: Failure, is_known: bool| {
        subject(failure.host_fault_if(is_known || may_be_running(&paths)))
    };
    file::make_dir(&paths.state)
        .map_err(|e| host_fault(Failure::described(&e), e.is_host_fault()))?;
    match supervise(settings, vm, text, Mode::Run).await {
        Ok(Outcome::Exit(0)) => Ok(()),
        // The end has been logged already.
        Ok(Outcome::Exit(code)) => Err(Failure::quiet(code)),
        Ok(Outcome::NotStarted(StartFailure { fault, why })) => {
            Err(subject(Failure::new(why.code, why.text).exit(fault.exit_code()).hint(why.hint)))
        }
        Ok(Outcome::Reexec) => {
            let failed = |failure: Failure| host_fault(failure, false);
            let number = lock.pass_on().map_err(|e| failed(Failure::from_error(&e)))?;
            signal::block().map_err(|e| failed(Failure::from_error(&e)))?;
            let next = Program::new(program).args(arguments.iter().skip(1));
            let error = next.env(LOCK_FD, number.to_string()).exec();
            let doing = format!("cannot execute `{}`", program.display());
            Err(failed(Failure::from_io(&doing, &error).exit(exit::FAILED)))
        }
        Err(e) => Err(host_fault(Failure::described(&e), e.is_host_fault())),
    }
}

/// Whether QEMU is running, or it is unknown whether it is.
fn may_be_running(paths: &VmPaths) -> bool {
    running::find(paths).map_or(true, |found| found.is_running())
}
