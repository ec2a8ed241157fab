//! `qvm log`: the log of the serial console, of this run and earlier ones.

use std::io;

use jiff::tz::TimeZone;
use tokio::{io::AsyncReadExt, net::UnixStream};

use crate::{
    cli::exit::Failure,
    store::layout::Layout,
    sys::log::{reader::LogReader, text::LogFormatter},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm log`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// Print new output until the VM is stopped
    #[arg(short, long)]
    follow: bool,
    /// Print only this many of the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<usize>,
    /// Print only output since the last boot of the guest
    #[arg(short = 'b', long)]
    since_boot: bool,
    /// Print the time before each line
    #[arg(short, long)]
    timestamps: bool,
}

/// Prints the log; times are in `zone`.
///
/// # Errors
/// The log does not exist or cannot be read; with `-f`, the VM is not running.
pub async fn run(args: &Args, layout: &Layout, zone: TimeZone) -> Result<(), Failure> {
    let path = layout.vm(&args.name).console_log();
    let cannot = |error: io::Error| {
        Failure::from_io(&format!("cannot read `{}`", path.display()), &error).about(&args.name)
    };
    // The console is attached before the log is read, so that no output is missed.
    let attached = if args.follow { Some(attach(&args.name, layout).await) } else { None };
    let mut log = LogReader::new(path.clone());
    let mut part = log.read().map_err(cannot)?;
    if !log.found() && attached.is_none() {
        let failure = super::not_running(layout, &args.name).await;
        return Err(match layout.vm_file(&args.name).symlink_metadata() {
            Ok(_) => {
                Failure::new(ErrorCode::NoOutput, "its console has no output yet").about(&args.name)
            }
            Err(_) => failure,
        });
    }
    if args.since_boot {
        part = part.since_boot();
    }
    if let Some(lines) = args.lines {
        part = part.last(lines);
    }
    let mut shown = LogFormatter::new(args.timestamps.then_some(zone));
    super::print_bytes(&shown.text(part))?;
    let Some(attached) = attached else { return Ok(()) };
    let mut console = attached?;
    super::shown(async {
        let mut bytes = vec![0; 16 << 10];
        // The supervisor writes the log before it sends the output to viewers. The console only
        // signals that there is new output, and the log supplies it, so that nothing is missed or
        // repeated.
        while let Ok(1..) = console.read(&mut bytes).await {
            super::print_bytes(&shown.text(log.read().map_err(cannot)?))?;
        }
        super::print_bytes(&shown.text(log.read().map_err(cannot)?))
    })
    .await
}

async fn attach(name: &VmName, layout: &Layout) -> Result<UnixStream, Failure> {
    let client = super::connect(layout, name).await?;
    super::or_refused(client.console(true, 0).await, layout, name).await
}
