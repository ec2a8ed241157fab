//! Why nothing was done to a VM: its state is unknown, it is in use, or its supervisor did not
//! start.

use crate::{
    cli::exit::{self, Failure},
    control::client,
    fleet::{
        orphans,
        start::{self, Begin},
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
    value::{Explain, VmName},
};

/// What a supervisor, or its absence, answers.
pub(crate) async fn refused(error: &client::Error, layout: &Layout, name: &VmName) -> Failure {
    match error {
        client::Error::NotRunning => not_running(layout, name).await,
        error => Failure::explained_for(error, name),
    }
}

/// The same of what may have gone well.
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
pub(crate) async fn not_in_guest(error: &guest::Error, layout: &Layout, name: &VmName) -> Failure {
    match error {
        guest::Error::Client(error) => refused(error, layout, name).await,
        guest::Error::NoReader => Failure::quiet(SessionEnd::NoReader.exit_code()),
        guest::Error::Interrupted(signal) => {
            Failure::quiet(SessionEnd::Signal(*signal).exit_code())
        }
        error => Failure::of(error).about(name).hint(error.hint_for(name)),
    }
}

/// The VM has no supervisor: why, as far as that can be read.
pub(crate) async fn not_running(layout: &Layout, name: &VmName) -> Failure {
    match find(layout, name).await {
        Ok(Ok(PreviousQemu::Running(qemu, _))) => return alone(name, qemu.pid()),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return unknown(&error, name),
        Err(failure) => return failure,
    }
    match is_known(layout, name).await {
        Ok(true) => Failure::new(exit::NOT_RUNNING, "not running").about(name),
        Ok(false) => Failure::new(exit::NOT_RUNNING, format!("there is no VM `{name}`"))
            .hint(Some("`qvm list` shows those there are".to_owned())),
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

/// The storage of a VM does not answer: nothing is done to the VM.
pub(crate) fn no_answer(error: &storage_reader::Error, name: &VmName) -> Failure {
    Failure::of(error).about(name).code(exit::HOST).hint(error.hint())
}

/// It is not known whether the VM is running: nothing is done to it.
pub(crate) fn unknown(error: &running::Unknown, name: &VmName) -> Failure {
    Failure::explained_for(error, name).code(exit::HOST)
}

/// Why the locks of a VM that has to be down are not held.
pub(crate) fn not_held(error: &vm_state::Error, name: &VmName) -> Failure {
    Failure::explained_for(error, name)
}

/// Why a QEMU process without a supervisor was not ended.
pub(crate) fn not_ended(error: &orphans::Error, name: &VmName) -> Failure {
    Failure::explained_for(error, name)
}

/// The supervisor was killed, and nobody has started another one yet.
pub(crate) fn alone(name: &VmName, qemu: u32) -> Failure {
    let text = format!("its QEMU runs without a supervisor, pid {qemu}");
    let hint = format!("`qvm start {name}` takes it over");
    Failure::new(exit::FAILED, text).about(name).hint(hint)
}

/// Why a supervisor did not start.
pub(crate) async fn not_begun(error: &start::Error, how: &Begin<'_>, name: &VmName) -> Failure {
    let layout = how.layout;
    match error {
        start::Error::Invalid(invalid) => Failure::invalid(invalid),
        start::Error::NoFile(_) if is_known(layout, name).await.unwrap_or(false) => {
            let file = layout.vm_file(name);
            let text = format!("it has no VM file: `{}` is not there", file.display());
            Failure::new(exit::NOT_RUNNING, text).about(name)
        }
        start::Error::NoFile(_) => not_running(layout, name).await,
        start::Error::Ended { status, wrote } => {
            let code = match status.code().and_then(|code| u8::try_from(code).ok()) {
                Some(code @ (exit::INVALID | exit::HOST | exit::NO_ROOM)) => code,
                _ => exit::FAILED,
            };
            // What it said at its end says more than that it ended; before that may be what QEMU
            // said.
            let progress = |line: &&str| matches!(line.split(' ').nth(2), Some("INFO"));
            let said: Vec<&str> = wrote.lines().filter(|line| !progress(line)).collect();
            match said.iter().any(|line| line.starts_with("error: ")) {
                true => Failure::told(code, said.join("\n")),
                false => Failure::of(error).about(name).code(code),
            }
        }
        start::Error::Unit { .. } => {
            // Of one that is started again systemd has soon forgotten it.
            let ended = match how.manager {
                Some(scope) => service::exit_code(name, scope).await,
                None => None,
            };
            let is_told = |code: &u8| matches!(*code, exit::NO_ROOM | exit::HOST);
            let code = ended.filter(is_told).unwrap_or(exit::FAILED);
            Failure::of(error).about(name).code(code).hint(error.hint())
        }
        error => Failure::explained_for(error, name),
    }
}
