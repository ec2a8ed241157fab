//! `qvm clone`: a second VM like one that is down, with an identity of its own.

use std::path::Path;

use crate::{
    cli::exit::Failure,
    fleet::start::{Begin, begin},
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

/// Makes a VM; `exe` is this program, `manager` the systemd whose units look where it does,
/// `terminal` says whether standard error is one.
///
/// # Errors
/// The VM is not shut down, the name is taken, a disk cannot be copied; or the copy does not start.
pub async fn run(
    args: &Args,
    means: IdentitySource,
    exe: &Path,
    manager: Option<Scope>,
    terminal: bool,
) -> Result<(), Failure> {
    let (from, name, layout) = (&args.from, &args.new, means.layout.clone());
    let [source, copy] = [from, name].map(Clone::clone);
    let cloned = super::long(move |cancel| {
        transfer::clone::clone(&means, &source, &copy, &mut TerminalProgress::new(terminal), cancel)
    });
    let cloned = cloned.await?.map_err(|error| super::not_carried(&error, from))?;
    super::take_up(name, manager).await?;
    super::tell(from, &format!("cloned to {name}"));
    super::tell_taken_out(name, &cloned.taken_out);
    super::advise_copy(name, from, &cloned.vm, cloned.has_run);
    if args.start {
        let how = Begin { layout: &layout, exe, manager, wait: true, say: super::tell };
        if let Err(error) = begin(name, &how).await {
            return Err(super::not_begun(&error, &how, name).await);
        }
        super::tell(name, "running");
    }
    Ok(())
}
