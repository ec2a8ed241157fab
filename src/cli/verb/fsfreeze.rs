//! `qvm fsfreeze`: the guest's file systems are held still, for a backup or a snapshot, and thawed
//! again whatever happens.

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
    value::VmName,
};

/// How long file systems are frozen at most, unless the operator says.
const THAW_AFTER: u32 = 60;
/// The longest that an operator may say: nothing in the guest that writes goes on meanwhile.
const MOST: u32 = 600;

/// The arguments of `qvm fsfreeze`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM; the guest requires qemu-guest-agent
    name: VmName,
    /// Thaw the file systems now
    #[arg(long, conflicts_with_all = ["thaw_after", "command"])]
    thaw: bool,
    /// Thaw the file systems after this time at the latest
    #[arg(long, value_name = "SEC", default_value_t = THAW_AFTER, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    thaw_after: u32,
    /// The command to run on the host meanwhile; its exit code becomes the exit code of qvm
    #[arg(value_name = "CMD", last = true)]
    command: Vec<String>,
}

/// Freezes, and where there is a command, runs it and thaws.
///
/// # Errors
/// The VM is not running, its agent does not take part, the command's own code; or they were thawed before it ended.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    if args.thaw {
        let thawed = thaw(layout, name).await?;
        super::tell(name, &format!("{} thawed", filesystems(thawed)));
        return Ok(());
    }
    // Before anything is frozen: a signal must not leave it so.
    let mut session = Session::catch().map_err(|error| Failure::of(&error).about(name))?;
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
        super::tell(name, &text);
        return Ok(());
    };
    let ended = follow(program, arguments, session).await;
    let thawed = thaw(layout, name).await;
    // First what the command says of itself, then what it could not know.
    let code = ended.map_err(|why| {
        Failure::new(exit::FAILED, format!("cannot run `{program}`: {why}")).about(name)
    })?;
    if thawed? == 0 || begun.elapsed() >= limit {
        let text = format!(
            "its file systems were thawed before `{program}` ended: what it made is not consistent"
        );
        let hint = format!("`--thaw-after` gives it more than {} s", args.thaw_after);
        return Err(Failure::new(exit::FAILED, text).about(name).hint(hint));
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

/// On a connection of its own: the supervisor may be another one by now.
async fn thaw(layout: &Layout, name: &VmName) -> Result<u64, Failure> {
    let mut client = super::connect(layout, name).await?;
    super::or_refused(client.thaw().await, layout, name).await
}

/// Runs a program of the host's to its end; its exit code. What is to end us is passed on to it:
/// its end is waited for.
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
        // Ctrl-C comes to all programs in the foreground of a terminal by itself, and twice would
        // be a hurry.
        let told = signal == SIGINT && terminal::is_in_foreground();
        if let (false, Some(signal)) = (told, Signal::from_named_raw(signal)) {
            // It may have ended by itself.
            let _ = process.signal(signal);
        }
    }
}
