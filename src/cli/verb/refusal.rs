//! Why nothing was done to a VM: its state is unknown, it is in use, or its supervisor did not
//! start.

use crate::{
    cli::exit::{self, Failure},
    fleet::{
        orphans,
        start::{self, Begin},
    },
    store::{
        layout::Layout,
        running::{self, PreviousQemu},
        vm_state,
    },
    systemd::service,
    value::VmName,
};

/// It is not known whether the VM is running: nothing is done to it.
pub(crate) fn unknown(error: &running::Unknown, name: &VmName) -> Failure {
    let hint = error.hint().replace("NAME", name.as_str());
    Failure::of(error).about(name).code(exit::HOST).hint(hint)
}

/// Why the locks of a VM that has to be down are not held.
pub(crate) fn not_held(error: &vm_state::Error, name: &VmName) -> Failure {
    let hint = error.hint().map(|hint| hint.replace("NAME", name.as_str()));
    let code = if error.is_the_hosts() { exit::HOST } else { exit::FAILED };
    Failure::of(error).about(name).code(code).hint(hint)
}

/// Why a QEMU process without a supervisor was not ended.
pub(crate) fn not_ended(error: &orphans::Error, name: &VmName) -> Failure {
    let hint = error.hint().map(|hint| hint.replace("NAME", name.as_str()));
    let code = if error.is_the_hosts() { exit::HOST } else { exit::FAILED };
    Failure::of(error).about(name).code(code).hint(hint)
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
        start::Error::NoFile(_) if layout.vm(name).state.is_dir() => {
            let file = layout.vm_file(name);
            let text = format!("it has no VM file: `{}` is not there", file.display());
            Failure::new(exit::NOT_RUNNING, text).about(name)
        }
        start::Error::NoFile(_) => not_running(layout, name),
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
        error => {
            let code = if error.is_the_hosts() { exit::HOST } else { exit::FAILED };
            let hint = error.hint().map(|hint| hint.replace("NAME", name.as_str()));
            Failure::of(error).about(name).code(code).hint(hint)
        }
    }
}

/// A request to a VM without a supervisor.
pub(crate) fn not_running(layout: &Layout, name: &VmName) -> Failure {
    match running::find(&layout.vm(name)) {
        Ok(PreviousQemu::Running(qemu, _)) => return alone(name, qemu.pid()),
        Ok(_) => {}
        Err(error) => return unknown(&error, name),
    }
    let known = layout.vm_file(name).symlink_metadata().is_ok() || layout.vm(name).state.is_dir();
    if known {
        return Failure::new(exit::NOT_RUNNING, "not running").about(name);
    }
    Failure::new(exit::NOT_RUNNING, format!("there is no VM `{name}`"))
        .hint(Some("`qvm list` shows those there are".to_owned()))
}
