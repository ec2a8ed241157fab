//! `qvm screenshot`: saves a picture of the guest's screen.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::PathBuf,
};

use crate::{cli::exit::Failure, store::layout::Layout, sys::file, value::VmName};

/// The arguments of `qvm screenshot`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// The PNG file to write; `-` is standard output
    #[arg(value_name = "FILE.png")]
    file: PathBuf,
}

/// Saves the picture.
///
/// # Errors
/// The VM is not running, has no screen, or the file cannot be written.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let client = super::connect(layout, name).await?;
    let taken = client.screenshot().await;
    let taken = super::or_refused(taken, layout, name).await?;
    let read = || -> io::Result<Vec<u8>> {
        let (mut from, mut bytes) = (File::from(taken), vec![]);
        from.rewind()?;
        from.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| Failure::from_error(&error).about(name))?;
    if args.file.as_os_str() == "-" {
        return super::print_bytes(&bytes);
    }
    file::remove_abandoned_beside(&args.file);
    file::write(&args.file, &bytes, 0o644).map_err(|e| Failure::described(&e).about(name))
}
