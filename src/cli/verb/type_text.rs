//! `qvm type`: types text on the guest's keyboard.

use crate::{
    cli::exit::Failure,
    store::layout::Layout,
    value::{VmName, keyboard::Chord},
};

/// The arguments of `qvm type`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// The text, typed as on a US keyboard; a line feed is the return key
    text: String,
    /// Press the return key afterward
    #[arg(long)]
    enter: bool,
}

/// Types the text and returns after the last key release.
///
/// # Errors
/// The VM is not running, or the keyboard layout lacks a character.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let text = if args.enter { format!("{}\n", args.text) } else { args.text.clone() };
    let chords = Chord::typing(&text);
    let chords = chords.map_err(|error| Failure::described(&error).about(&args.name))?;
    super::press(layout, &args.name, &chords).await
}
