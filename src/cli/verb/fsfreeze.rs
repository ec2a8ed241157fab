//! `qvm fsfreeze`: freezes the guest's file systems for a backup or a snapshot; a deadline thaws
//! them in every case.

use std::{sync::Arc, time::Duration};

use signal_hook::consts::SIGINT;
use tokio::time::Instant;

use crate::{
    cli::exit::{self, Failure},
    store::layout::Layout,
    sys::{
        pidfd::{Exit, Process, Signal},
        program::Program,
        session::Session,
        terminal,
    },
    value::{ErrorCode, VmName},
};

/// The default time limit of a freeze, in seconds.
const THAW_AFTER: u32 = 60;
/// The longest time limit, in seconds: the guest cannot write meanwhile.
const MAX_THAW_AFTER: u32 = 600;

/// The arguments of `qvm fsfreeze`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM; the guest requires qemu-guest-agent
    name: VmName,
    /// Thaw the file systems now
    #[arg(long, conflicts_with_all = ["thaw_after", "command"])]
    thaw: bool,
    /// Thaw the file systems after this time at the latest
    #[arg(
        long,
        value_name = "SEC",
        default_value_t = THAW_AFTER,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_THAW_AFTER))
    )]
    thaw_after: u32,
    /// The command to run on the host meanwhile; its exit code becomes the exit code of qvm
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,
}

/// Freezes the file systems. With a command, runs it and thaws them.
///
/// # Errors
/// The VM is not running, its agent fails, the command fails, or the file systems were thawed
/// before the command ended.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    if args.thaw {
        let thawed = thaw(layout, name).await?;
        super::report(name, &format!("{} thawed", filesystems(thawed)));
        return Ok(());
    }
    // Signals are caught before the freeze, so that none leaves the file systems frozen.
    let mut session = Session::catch().map_err(|error| Failure::from_error(&error).about(name))?;
    let limit = Duration::from_secs(args.thaw_after.into());
    let begun = Instant::now();
    let mut client = super::connect(layout, name).await?;
    let frozen = tokio::select! {
        frozen = client.freeze(limit) => frozen,
        vanished = session.end() => {
            let _ = thaw(layout, name).await;
            return Err(Failure::quiet(vanished.exit_code()));
        }
    };
    let frozen = super::or_refused(frozen, layout, name).await?;
    let Some((program, arguments)) = args.command.split_first() else {
        let text = format!("{} frozen, for at most {} s", filesystems(frozen), args.thaw_after);
        super::report(name, &text);
        return Ok(());
    };
    let ended = follow(program, arguments, session).await;
    let thawed = thaw(layout, name).await;
    // The failure of the command comes before the one of the freeze.
    let code = ended.map_err(|why| {
        Failure::new(ErrorCode::ProgramFailed, format!("cannot run `{program}`: {why}")).about(name)
    })?;
    if thawed? == 0 || begun.elapsed() >= limit {
        let text = format!(
            "its file systems were thawed before `{program}` ended: the result is not consistent"
        );
        let hint = format!("`--thaw-after` extends the limit of {} s", args.thaw_after);
        return Err(Failure::new(ErrorCode::ThawedEarly, text).about(name).hint(hint));
    }
    match code {
        0 => Ok(()),
        code => Err(Failure::quiet(code)),
    }
}

fn filesystems(count: u64) -> String {
    match count {
        1 => "1 file system is".to_owned(),
        count => format!("{count} file systems are"),
    }
}

/// Uses a new connection: the supervisor may have been replaced.
async fn thaw(layout: &Layout, name: &VmName) -> Result<u64, Failure> {
    let mut client = super::connect(layout, name).await?;
    super::or_refused(client.thaw().await, layout, name).await
}

/// Runs a program of the host and returns its exit code. Signals are passed on to the program, and
/// its end is awaited.
async fn follow(program: &str, arguments: &[String], mut session: Session) -> std::io::Result<u8> {
    let child = Program::new(program).args(arguments).spawn_in_foreground()?;
    let process = Arc::new(Process::open(child.id())?);
    loop {
        let signal = tokio::select! {
            exit = process.wait() => return Ok(match exit {
                Exit::Code(code) => u8::try_from(code).unwrap_or(exit::FAILED),
                Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(exit::FAILED),
                Exit::Unknown => exit::FAILED,
            }),
            vanished = session.end() => vanished.signal(),
        };
        // The terminal sends Ctrl-C to all programs in the foreground; many programs take a second
        // one as an immediate abort.
        let is_signaled = signal == SIGINT && terminal::is_in_foreground();
        if let (false, Some(signal)) = (is_signaled, Signal::from_named_raw(signal)) {
            // The program may have exited already.
            let _ = process.signal(signal);
        }
    }
}
