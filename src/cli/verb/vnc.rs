//! `qvm vnc`: prints the address of the guest's screen, or opens a viewer.

use std::io;

use crate::{
    cli::exit::{self, Failure},
    fleet::inventory::STATUS_LIMIT,
    store::layout::Layout,
    sys::program::{Program, run_code},
    value::{ErrorCode, VmName},
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
/// The VM is not running, its screen is not served (3), or no viewer is installed.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let mut client = super::connect(layout, name).await?;
    let status = client.status(STATUS_LIMIT).await;
    let status = super::or_refused(status, layout, name).await?;
    let Some(at) = status.vnc else {
        let hint = "set `vnc = \"unix\"` in `[display]` of the VM file and restart the VM";
        let failure = Failure::new(ErrorCode::ScreenNotServed, "its screen is not served by VNC");
        return Err(failure.about(name).hint(hint.to_owned()));
    };
    if !args.open {
        return super::print(&format!("{at}\n"));
    }
    let socket = at.strip_prefix("unix:");
    let viewer = |program: &str, at: String| Program::new(program).arg(at).exec();
    // TigerVNC's viewer takes a port after two colons, and a path unchanged.
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
        return Err(Failure::new(run_code(&first), text).exit(exit::FAILED).about(name));
    }
    let error = viewer(
        "remote-viewer",
        match socket {
            Some(path) => format!("vnc+unix://{path}"),
            None => format!("vnc://{at}"),
        },
    );
    let hint = format!("`qvm vnc {name}` prints the address for any viewer");
    let text = format!("neither `vncviewer` nor `remote-viewer` can be run: {error}");
    Err(Failure::new(run_code(&error), text).exit(exit::FAILED).about(name).hint(hint))
}
