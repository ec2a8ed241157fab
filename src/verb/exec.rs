//! `qvm exec`: runs a command in the guest by its agent; says what it said, exits as it exited.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::{
    exit::Failure,
    plan::layout::Layout,
    value::{Seconds, VmName, base64},
};

/// What `qvm exec` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM; its guest needs qemu-guest-agent
    name: VmName,
    /// How long the command may take
    #[arg(long, value_name = "SEC", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX)))]
    timeout: u32,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<String>,
}

/// Runs the command. Its exit code becomes that of qvm.
///
/// # Errors
/// The VM is not running, its agent does not answer, or the command's own code.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let mut client = super::connect(layout, &args.name).await?;
    let limit = Duration::from_secs(u64::from(args.timeout));
    let done = client.exec(args.command.clone(), limit).await;
    let done = done.map_err(|error| super::refused(&error, layout, &args.name))?;
    let bytes = |text: &str| {
        let what = "the guest's agent sent what is no base64";
        base64(text).ok_or_else(|| Failure::new(1, what).about(&args.name))
    };
    let (out, err) = (bytes(&done.out)?, bytes(&done.err)?);
    // Where standard error is closed, nobody can be told.
    let _ = io::stderr().write_all(&err);
    super::print_bytes(&out)?;
    match done.exit_code {
        0 => Ok(()),
        code => Err(Failure::quiet(u8::try_from(code).unwrap_or(1))),
    }
}
