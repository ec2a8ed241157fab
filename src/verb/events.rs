//! `qvm events`: what happens to a VM, a JSON object a line, until its supervisor is gone.

use crate::{exit::Failure, plan::layout::Layout, value::VmName};

/// What `qvm events` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    name: VmName,
}

/// Prints events as they come.
///
/// # Errors
/// It is not running.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let client = super::connect(layout, &args.name).await?;
    let watch = client.watch().await;
    let mut watch = watch.map_err(|error| super::refused(&error, layout, &args.name))?;
    // From here on nothing is missed: whoever reads this may begin to do something.
    super::print("{\"event\":\"READY\",\"data\":null}\n")?;
    while let Some(event) = watch.next().await {
        let mut line = serde_json::to_string(&event).map_err(|error| Failure::of(&error))?;
        line.push('\n');
        super::print(&line)?;
    }
    Ok(())
}
