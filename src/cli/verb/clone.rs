//! `qvm clone`: copies a stopped VM; the copy has a new identity.

use std::path::Path;

use crate::{
    cli::exit::Failure,
    fleet::start::{StartOptions, start_vm},
    store::identity_store::IdentitySource,
    sys::progress::TerminalProgress,
    systemd::unit::Scope,
    transfer,
    value::VmName,
};

/// The arguments of `qvm clone`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM to copy; it must be stopped
    from: VmName,
    /// The name of the copy
    new: VmName,
    /// Start the copy afterward
    #[arg(long)]
    start: bool,
}

/// Clones a VM. `exe` is this program, `manager` the systemd manager whose units use these
/// directories; `terminal` is true if standard error is one.
///
/// # Errors
/// The VM is not stopped, the name exists, a disk cannot be copied, or the copy does not start.
pub async fn run(
    args: &Args,
    identity_source: IdentitySource,
    exe: &Path,
    manager: Option<Scope>,
    terminal: bool,
) -> Result<(), Failure> {
    let (from, name, layout) = (&args.from, &args.new, identity_source.layout.clone());
    let [source, copy] = [from, name].map(Clone::clone);
    let cloned = super::long(move |cancel| {
        transfer::clone::clone(
            &identity_source,
            &source,
            &copy,
            &mut TerminalProgress::new(terminal),
            cancel,
        )
    });
    let cloned = cloned.await?.map_err(|error| super::transfer_failure(&error, from))?;
    super::reload_units(name, manager).await?;
    super::report(from, &format!("cloned to {name}"));
    super::print_removed_keys(name, &cloned.removed_keys);
    super::advise_copy(name, from, &cloned.vm, cloned.has_run);
    if args.start {
        let how = StartOptions { layout: &layout, exe, manager, wait: true, say: super::report };
        if let Err(error) = start_vm(name, &how).await {
            return Err(super::not_started(&error, &how, name).await);
        }
        super::report(name, "running");
    }
    Ok(())
}
