//! `qvm edit`: opens a VM file in the operator's editor; the file is replaced only if it is valid.

use std::ffi::OsStr;

use crate::{
    cli::{
        edited::{self, Edited},
        exit::{self, Failure},
    },
    fleet::inventory::inventory,
    spec::Invalid,
    store::layout::Layout,
    sys::{program, session, storage_reader::StorageReader, terminal},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm edit`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
}

/// Runs `editor` on a copy, and replaces the file if the copy is valid.
///
/// # Errors
/// The file does not exist, the editor fails, the copy stays invalid, or the file was changed
/// meanwhile.
pub async fn run(args: &Args, layout: &Layout, editor: &OsStr) -> Result<(), Failure> {
    let name = &args.name;
    let file = layout.vm_file(name);
    let fail = |error: edited::Error| {
        let code = match error {
            edited::Error::Missing(_) => exit::NOT_RUNNING,
            _ => exit::FAILED,
        };
        Failure::described(&error).exit(code).about(name)
    };
    let cannot = |error: &std::io::Error| Failure::from_error(error).about(name);
    // Ctrl-C is for the editor.
    let signals = session::signals().map_err(|error| cannot(&error))?;
    let edited = Edited::create(&file).map_err(fail)?;
    loop {
        let shown = editor.to_string_lossy();
        let ended = program::by_shell(editor, edited.copy())
            .spawn_in_foreground()
            .and_then(|mut child| child.wait());
        let ended = ended.map_err(|error| cannot(&error))?;
        if !ended.success() {
            let text = format!("not changed: the editor `{shown}` failed: {ended}");
            let hint = "`VISUAL` and `EDITOR` select the editor".to_owned();
            return Err(Failure::new(ErrorCode::EditorFailed, text).about(name).hint(hint));
        }
        let unchanged = edited.is_unchanged().map_err(fail)?;
        match edited.check() {
            Ok(()) if unchanged => return super::print(&format!("{name}: unchanged\n")),
            Ok(()) => break,
            Err(invalid) if !terminal::is_interactive() => {
                return Err(refused(name, Some(&invalid)));
            }
            Err(invalid) => {
                eprintln!("{invalid}");
                if !again(name, &signals) {
                    return Err(refused(name, None));
                }
            }
        }
    }
    edited.finish().map_err(fail)?;
    super::report(name, &format!("wrote {}", file.display()));
    pending(layout, name).await;
    Ok(())
}

/// Asks whether to edit again. An invalid file cannot be saved.
fn again(name: &VmName, signals: &std::os::unix::net::UnixStream) -> bool {
    loop {
        let question = format!("{name}: not valid. (e)dit again, or e(x)it without saving? ");
        match terminal::ask(&question, signals).as_deref() {
            Some("e" | "E" | "edit") => return true,
            None => {
                eprintln!();
                return false;
            }
            Some("x" | "X" | "exit" | "q") => return false,
            Some(_) => {}
        }
    }
}

fn refused(name: &VmName, invalid: Option<&Invalid>) -> Failure {
    let failure = Failure::new(ErrorCode::InvalidFile, "not changed: the edited text is invalid");
    let failure = failure.about(name);
    match invalid {
        Some(invalid) => Failure::preformatted(exit::INVALID, format!("{invalid}\n{failure}")),
        None => failure,
    }
}

/// Prints when each change takes effect, if the VM is running.
async fn pending(layout: &Layout, name: &VmName) {
    let entries = inventory(&StorageReader::default(), layout, std::slice::from_ref(name)).await;
    let Some(entry) = entries.iter().find(|entry| entry.answers) else { return };
    for pending in &entry.status.pending {
        super::report(name, &format!("pending: {}", super::change(pending)));
    }
}
