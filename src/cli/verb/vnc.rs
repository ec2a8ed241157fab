//! `qvm vnc`: where the guest's screen is served, or a viewer of it.

use std::io;

use crate::{
    cli::exit::{self, Failure},
    fleet::inventory::PATIENCE,
    store::layout::Layout,
    sys::program::Program,
    value::VmName,
};

/// The arguments of `qvm vnc`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// Open a viewer: vncviewer(1) or remote-viewer(1)
    #[arg(long)]
    open: bool,
}

/// Prints the address, `unix:PATH` or `ADDRESS:PORT`.
///
/// # Errors
/// It is not running, or serves no screen (3); there is no viewer.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let mut client = super::connect(layout, name).await?;
    let status = client.status(PATIENCE).await;
    let status = super::or_refused(status, layout, name).await?;
    let Some(at) = status.vnc else {
        let hint =
            "`vnc = \"unix\"` in `[display]` of its VM file serves it, from the next start on";
        let failure = Failure::new(exit::NOT_RUNNING, "its screen is not served");
        return Err(failure.about(name).hint(hint.to_owned()));
    };
    if !args.open {
        return super::print(&format!("{at}\n"));
    }
    let socket = at.strip_prefix("unix:");
    let viewer = |program: &str, at: String| Program::new(program).arg(at).exec();
    // TigerVNC's takes a port with two colons, and a path as it is.
    let first = viewer(
        "vncviewer",
        match socket {
            Some(path) => path.to_owned(),
            None => {
                at.rsplit_once(':').map_or(at.clone(), |(host, port)| format!("{host}::{port}"))
            }
        },
    );
    if first.kind() != io::ErrorKind::NotFound {
        let text = format!("cannot run `vncviewer`: {first}");
        return Err(Failure::new(exit::FAILED, text).about(name));
    }
    let error = viewer(
        "remote-viewer",
        match socket {
            Some(path) => format!("vnc+unix://{path}"),
            None => format!("vnc://{at}"),
        },
    );
    let hint = format!("`qvm vnc {name}` tells the address for any viewer");
    let text = format!("there is neither `vncviewer` nor `remote-viewer`: {error}");
    Err(Failure::new(exit::FAILED, text).about(name).hint(hint))
}
