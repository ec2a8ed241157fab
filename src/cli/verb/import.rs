//! `qvm import`: creates a VM from an archive of `qvm export`.

use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use crate::{
    cli::exit::{self, Failure},
    store::identity_store::IdentitySource,
    sys::progress::TerminalProgress,
    systemd::unit::Scope,
    transfer::{
        Error,
        import::{Imported, import},
        import_request::Import,
    },
    value::{ErrorCode, Explain, VmName},
};

/// The arguments of `qvm import`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The archive written by `qvm export`; `-` is standard input
    file: PathBuf,
    /// The name of the VM [default: the name in the archive]
    #[arg(long)]
    name: Option<VmName>,
    /// Create a new identity, so that the VM can run beside the exported VM
    #[arg(long)]
    new_identity: bool,
}

/// Imports a VM from a file; relative paths are relative to `cwd`.
///
/// # Errors
/// The file is not a valid archive, or the VM exists.
pub async fn run(
    args: &Args,
    identity_source: IdentitySource,
    cwd: &Path,
    manager: Option<Scope>,
    terminal: bool,
) -> Result<(), Failure> {
    let called = args.file.display().to_string();
    let (mut from, length): (Box<dyn Read + Send>, _) = if args.file == Path::new("-") {
        if io::stdin().is_terminal() {
            let text = "nothing imported: standard input is a terminal";
            return Err(Failure::new(ErrorCode::Usage, text));
        }
        (Box::new(io::stdin()), None)
    } else {
        let cannot = |error| Failure::from_io(&format!("cannot read `{called}`"), &error);
        let file = File::open(cwd.join(&args.file)).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        (Box::new(file), Some(meta.len()).filter(|_| meta.is_file()))
    };
    let (name, new_identity) = (args.name.clone(), args.new_identity);
    let imported = super::long(move |cancel| {
        let mut what = Import { from: &mut *from, called, length, name, new_identity };
        import(&mut what, &identity_source, &mut TerminalProgress::new(terminal), cancel)
    });
    let imported = imported.await?.map_err(|error| refused(&error, args))?;
    super::reload_units(&imported.vm.name, manager).await?;
    print_imported(args, &imported);
    Ok(())
}

fn refused(error: &Error, args: &Args) -> Failure {
    match (error, &args.name) {
        (error, _) if error.is_host_fault() => Failure::described(error).exit(exit::HOST),
        (Error::Exists(_) | Error::Kept { .. } | Error::InUse { .. }, None) => {
            Failure::described(error).hint("`--name` sets another name".to_owned())
        }
        (Error::WouldBeInvalid(invalid), _) => Failure::invalid(invalid),
        (error, _) => Failure::explained(error),
    }
}

fn print_imported(args: &Args, imported: &Imported) {
    let Imported { vm, was, .. } = imported;
    super::report(&vm.name, &format!("imported from {}", args.file.display()));
    if let Some(path) = &imported.user_data {
        super::report(&vm.name, &format!("the user-data was written to {}", path.display()));
    }
    super::print_removed_keys(&vm.name, &imported.removed_keys);
    if let Some(hostname) = &imported.hostname {
        super::keeps_hostname(hostname);
    }
    for path in &imported.host_files {
        super::advise(&format!("the VM file refers to `{}` on this host", path.display()));
    }
    if args.new_identity {
        super::advise_copy(&vm.name, was, vm, imported.has_run);
    }
}
