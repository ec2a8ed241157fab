//! Why a verb did not act on a VM: its state is unknown, it is in use, or its supervisor did not
//! start.

use crate::{
    cli::exit::{self, Failure},
    control::client,
    fleet::{
        orphans,
        start::{self, StartOptions},
    },
    guest,
    store::{
        layout::Layout,
        running::{self, PreviousQemu},
        vm_state,
    },
    sys::{
        session::SessionEnd,
        storage_reader::{self, StorageReader},
    },
    systemd::service,
    value::{ErrorCode, Explain, VmName},
};

/// Returns the failure for an error of the control client.
pub(crate) async fn refused(error: &client::Error, layout: &Layout, name: &VmName) -> Failure {
    match error {
        client::Error::NotRunning => not_running(layout, name).await,
        // The text of the problems includes `error: `.
        client::Error::Refused { code: code @ ErrorCode::InvalidFile, reason, .. } => {
            Failure::preformatted(exit::FAILED, reason).error_code(*code)
        }
        error => Failure::explained_for(error, name),
    }
}

/// Returns the result, or the failure for its error.
pub(crate) async fn or_refused<T>(
    done: Result<T, client::Error>,
    layout: &Layout,
    name: &VmName,
) -> Result<T, Failure> {
    match done {
        Ok(done) => Ok(done),
        Err(error) => Err(refused(&error, layout, name).await),
    }
}

/// The failure of an operation in a guest; without text if a signal or a closed output ended it.
pub(crate) async fn guest_failure(error: &guest::Error, layout: &Layout, name: &VmName) -> Failure {
    match error {
        guest::Error::Client(error) => refused(error, layout, name).await,
        guest::Error::NoReader => Failure::quiet(SessionEnd::NoReader.exit_code()),
        guest::Error::Interrupted(signal) => {
            Failure::quiet(SessionEnd::Signal(*signal).exit_code())
        }
        error => Failure::described(error).about(name).hint(error.hint_for(name)),
    }
}

/// The failure for a VM without a supervisor, with the reason if it is known.
pub(crate) async fn not_running(layout: &Layout, name: &VmName) -> Failure {
    match find(layout, name).await {
        Ok(Ok(PreviousQemu::Running(qemu, _))) => return without_supervisor(name, qemu.pid()),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return unknown(&error, name),
        Err(failure) => return failure,
    }
    match is_known(layout, name).await {
        Ok(true) => Failure::new(ErrorCode::NotRunning, "not running").about(name),
        Ok(false) => Failure::new(ErrorCode::VmNotFound, format!("there is no VM `{name}`"))
            .hint(Some("`qvm list` shows all VMs".to_owned())),
        Err(failure) => failure,
    }
}

/// Whether a QEMU process of a VM is running.
///
/// # Errors
/// The storage of the VM does not answer.
pub(crate) async fn find(layout: &Layout, name: &VmName) -> Result<running::Found, Failure> {
    let paths = layout.vm(name);
    let found =
        StorageReader::default().read(&layout.vm(name).state, move |_| running::find(&paths));
    found.await.map_err(|error| no_answer(&error, name))
}

/// Whether there is a VM file or a state directory.
///
/// # Errors
/// The storage of one does not answer.
pub(crate) async fn is_known(layout: &Layout, name: &VmName) -> Result<bool, Failure> {
    let (file, state) = (layout.vm_file(name), layout.vm(name).state);
    let known = StorageReader::default().read(&layout.vm(name).state, move |position| {
        state.is_dir() || {
            position.set(&file);
            file.symlink_metadata().is_ok()
        }
    });
    known.await.map_err(|error| no_answer(&error, name))
}

/// The failure if the storage of a VM does not answer.
pub(crate) fn no_answer(error: &storage_reader::Error, name: &VmName) -> Failure {
    Failure::described(error).about(name).exit(exit::HOST)
}

/// The failure if it is unknown whether the VM is running.
pub(crate) fn unknown(error: &running::Unknown, name: &VmName) -> Failure {
    Failure::explained_for(error, name).exit(exit::HOST)
}

/// The failure if the locks of a VM that must be stopped cannot be acquired.
pub(crate) fn not_held(error: &vm_state::Error, name: &VmName) -> Failure {
    Failure::explained_for(error, name)
}

/// The failure if a QEMU process without a supervisor was not ended.
pub(crate) fn not_ended(error: &orphans::Error, name: &VmName) -> Failure {
    Failure::explained_for(error, name)
}

/// The failure if QEMU runs without a supervisor.
pub(crate) fn without_supervisor(name: &VmName, qemu: u32) -> Failure {
    let text = format!("its QEMU process (pid {qemu}) runs without a supervisor");
    let hint = format!("`qvm start {name}` adopts it");
    Failure::new(ErrorCode::NoSupervisor, text).about(name).hint(hint)
}

/// The failure of a start.
pub(crate) async fn not_started(
    error: &start::Error,
    how: &StartOptions<'_>,
    name: &VmName,
) -> Failure {
    let layout = how.layout;
    match error {
        start::Error::Invalid(invalid) => Failure::invalid(invalid),
        start::Error::NoFile(_) if is_known(layout, name).await.unwrap_or(false) => {
            let file = layout.vm_file(name);
            let text = format!("the VM file `{}` does not exist", file.display());
            Failure::new(ErrorCode::VmFileMissing, text).about(name)
        }
        start::Error::NoFile(_) => not_running(layout, name).await,
        start::Error::Ended { status, wrote } => {
            let code = match status.code().and_then(|code| u8::try_from(code).ok()) {
                Some(code @ (exit::INVALID | exit::HOST | exit::NO_MEMORY)) => code,
                _ => exit::FAILED,
            };
            // The last line of the supervisor is more specific than its exit code; earlier lines
            // may be output of QEMU.
            let progress = |line: &&str| matches!(line.split(' ').nth(2), Some("INFO"));
            let lines: Vec<&str> = wrote.lines().filter(|line| !progress(line)).collect();
            // Its own error, hint and code. It has none if it was killed.
            match error.code() {
                ErrorCode::SupervisorExited => Failure::described(error).about(name).exit(code),
                _ => Failure::preformatted(code, lines.join("\n")),
            }
        }
        start::Error::Unit { .. } => {
            // systemd forgets the result of a unit that is restarted.
            let ended = match how.manager {
                Some(scope) => service::exit_code(name, scope).await,
                None => None,
            };
            let is_told = |code: &u8| matches!(*code, exit::NO_MEMORY | exit::HOST);
            let code = ended.filter(is_told).unwrap_or(exit::FAILED);
            Failure::described(error).about(name).exit(code)
        }
        error => Failure::explained_for(error, name),
    }
}
