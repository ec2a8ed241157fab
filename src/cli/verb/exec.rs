//! `qvm exec`: runs a command in the guest through the guest agent; prints its output as it arrives
//! and exits with its exit code.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use crate::{
    cli::exit::Failure,
    guest::{Streams, exec},
    store::layout::Layout,
    sys::terminal::{Output, input_of},
    value::{Seconds, VmName},
};

/// The arguments of `qvm exec`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM; the guest requires qemu-guest-agent
    name: VmName,
    /// Do not read standard input; by default it is read to its end first unless it is a terminal
    #[arg(short = 'n', long)]
    no_input: bool,
    /// End the command after this time
    #[arg(
        long,
        value_name = "SEC",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX))
    )]
    timeout: Option<u32>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<String>,
}

/// Runs the command. Its exit code becomes the exit code of qvm.
///
/// # Errors
/// The VM is not running, its agent does not answer, or the command fails.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let mut guest = super::guest(layout, &args.name).await?;
    let input = (!args.no_input && !io::stdin().is_terminal()).then(|| input_of(io::stdin()));
    let streams = Streams { input, out: Output::stdout(), err: Output::stderr() };
    let limit = args.timeout.map(|seconds| Duration::from_secs(seconds.into()));
    match exec(&mut guest, &args.command, streams, limit).await {
        Ok(0) => Ok(()),
        Ok(code) => Err(Failure::quiet(u8::try_from(code).unwrap_or(1))),
        Err(error) => Err(super::guest_failure(&error, layout, &args.name).await),
    }
}
