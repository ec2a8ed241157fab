//! `qvm sendkey`: presses keys together, such as ctrl-alt-delete.

use crate::{
    cli::exit::{self, Failure},
    store::layout::Layout,
    value::{VmName, keyboard::Chord},
};

/// The arguments of `qvm sendkey`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// QEMU key names; keys joined with `-` are pressed together
    #[arg(value_name = "KEYS", required = true)]
    chords: Vec<String>,
}

/// Presses the chords in order.
///
/// # Errors
/// The VM is not running, or a key does not exist (2).
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let chords: Result<Vec<Chord>, _> = args.chords.iter().map(|text| text.parse()).collect();
    let chords = chords.map_err(|error: crate::value::keyboard::Error| {
        Failure::described(&error).exit(exit::USAGE).about(&args.name)
    })?;
    super::press(layout, &args.name, &chords).await
}
