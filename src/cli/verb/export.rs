//! `qvm export`: writes a stopped VM to an archive.

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    cli::exit::Failure,
    store::layout::Layout,
    sys::progress::TerminalProgress,
    transfer::export::{To, export},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm export`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM; it must be stopped
    name: VmName,
    /// The tar archive to create; `-` is standard output
    file: PathBuf,
}

/// Exports a VM to a file; relative paths are relative to `cwd`.
///
/// # Errors
/// The VM is not stopped, a disk cannot be exported, or the file cannot be written.
pub async fn run(
    args: &Args,
    layout: &Layout,
    cwd: &Path,
    now: Timestamp,
    terminal: bool,
) -> Result<(), Failure> {
    let name = &args.name;
    let stdout = args.file == Path::new("-");
    if stdout && io::stdout().is_terminal() {
        let failure =
            Failure::new(ErrorCode::Usage, "nothing exported: standard output is a terminal");
        return Err(failure.about(name));
    }
    let (layout, vm, path) = (layout.clone(), name.clone(), cwd.join(&args.file));
    let exported = super::long(move |cancel| {
        let to = if stdout { To::Stdout } else { To::File(&path) };
        export(&layout, &vm, &to, now, &mut TerminalProgress::new(terminal), cancel)
    });
    let exported = exported.await?.map_err(|error| super::transfer_failure(&error, name))?;
    if !stdout {
        let size = super::size(exported.bytes);
        super::report(name, &format!("exported to {}, {size}", args.file.display()));
    }
    for path in exported.left {
        super::advise(&format!(
            "the VM file refers to `{}`, which is not in the archive",
            path.display()
        ));
    }
    Ok(())
}
