//! `qvm edit`: a VM file in the operator's editor; it counts only once it is valid.

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
    value::{Explain, VmName},
};

/// The arguments of `qvm edit`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
}

/// Has `editor` edit a copy, and puts it in the file's place when nothing is wrong with it.
///
/// # Errors
/// There is no such file, the editor fails, the file stays invalid, or somebody else has changed it meanwhile.
pub async fn run(args: &Args, layout: &Layout, editor: &OsStr) -> Result<(), Failure> {
    let name = &args.name;
    let file = layout.vm_file(name);
    let fail = |error: edited::Error| {
        let code = match error {
            edited::Error::Missing(_) => exit::NOT_RUNNING,
            _ => exit::FAILED,
        };
        Failure::of(&error).code(code).about(name).hint(error.hint())
    };
    let cannot = |error: &std::io::Error| Failure::of(error).about(name);
    // Ctrl-C in the editor is the editor's.
    let signals = session::signals().map_err(|error| cannot(&error))?;
    let edited = Edited::begin(&file).map_err(fail)?;
    loop {
        let shown = editor.to_string_lossy();
        let ended = program::by_shell(editor, edited.copy())
            .spawn_in_foreground()
            .and_then(|mut child| child.wait());
        let ended = ended.map_err(|error| cannot(&error))?;
        if !ended.success() {
            let text = format!("nothing changed: the editor `{shown}` failed: {ended}");
            let hint = "`VISUAL` or `EDITOR` names another one".to_owned();
            return Err(Failure::new(exit::FAILED, text).about(name).hint(hint));
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
    super::tell(name, &format!("wrote {}", file.display()));
    pending(layout, name).await;
    Ok(())
}

/// Whether the operator goes on; to save what is invalid is not on offer.
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
    let failure = Failure::new(exit::INVALID, "nothing changed: what was written is not valid");
    let failure = failure.about(name);
    match invalid {
        Some(invalid) => Failure::told(exit::INVALID, format!("{invalid}\n{failure}")),
        None => failure,
    }
}

/// When each change becomes real, if the VM runs.
async fn pending(layout: &Layout, name: &VmName) {
    let entries = inventory(&StorageReader::default(), layout, std::slice::from_ref(name)).await;
    let Some(entry) = entries.iter().find(|entry| entry.answers) else { return };
    for pending in &entry.status.pending {
        super::tell(name, &format!("pending: {}", super::change(pending)));
    }
}
