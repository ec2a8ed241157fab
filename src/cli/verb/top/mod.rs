//! `qvm top`: the resource usage of VMs, updated continuously, with keys for a console and a clean
//! stop.

pub(crate) mod amount;
mod draw;
pub(crate) mod model;
mod screen;

pub(crate) use self::model::{KeyAction, Sort};

pub(crate) use self::model::Top;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{Event, KeyEventKind};

use self::screen::Screen;
use crate::{
    cli::exit::Failure,
    control::{
        client::Client,
        types::{self},
    },
    fleet::rates::{Sample, sample},
    store::layout::Layout,
    sys::{
        pidfd::{Exit, Process, Signal},
        program::Program,
        session::{Session, SessionEnd},
        storage_reader::StorageReader,
    },
    value::ErrorCode,
};

/// The arguments of `qvm top`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Seconds between updates
    #[arg(
        short,
        long,
        value_name = "SEC",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=3600)
    )]
    delay: u32,
}

/// The context of the verb.
pub struct Context<'a> {
    /// The directories.
    pub layout: &'a Layout,
    /// `/proc`.
    pub proc: &'a Path,
    /// This program, which is run for a console.
    pub exe: &'a Path,
    /// Whether the terminal has colors.
    pub colours: bool,
}

/// The poll interval for keys and signals.
const POLL: Duration = Duration::from_millis(200);

/// The errno of a terminal that hung up (errno(3)).
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Shows the table until `q`.
///
/// # Errors
/// Standard output is not a terminal.
pub async fn run(args: &Args, context: &Context<'_>) -> Result<(), Failure> {
    use std::io::IsTerminal;
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let hint =
            "without a terminal, use `qvm list`, `qvm metrics` or `qvm status --json`".to_owned();
        return Err(Failure::new(ErrorCode::Usage, "`qvm top` requires a terminal").hint(hint));
    }
    let cannot = |error: io::Error| match error.raw_os_error() {
        Some(EIO) => Failure::quiet(SessionEnd::HungUp.exit_code()),
        _ => Failure::new(ErrorCode::OutputFailed, format!("cannot use the terminal: {error}")),
    };
    let mut session = Session::catch().map_err(cannot)?;
    let mut screen = Screen::enter().map_err(cannot)?;
    let shown = show(args, context, &mut screen, &mut session).await;
    screen.leave().await;
    match shown.map_err(cannot)? {
        None | Some(SessionEnd::NoReader) => Ok(()),
        Some(vanished) => Err(Failure::quiet(vanished.exit_code())),
    }
}

/// Shows the table; returns how the session ended.
async fn show(
    args: &Args,
    context: &Context<'_>,
    screen: &mut Screen,
    session: &mut Session,
) -> io::Result<Option<SessionEnd>> {
    let mut top = Top {
        rows: vec![],
        sort: Sort::Cpu,
        selected: None,
        asked: None,
        message: None,
        head: String::new(),
        colours: context.colours,
    };
    let (storage, mut before) = (StorageReader::default(), None::<Sample>);
    loop {
        let now = tokio::select! {
            now = sample(&storage, context.layout, context.proc) => now,
            vanished = session.end() => return Ok(Some(vanished)),
        };
        top.update(before.as_ref(), &now);
        // The second sample follows soon, so that the first rates appear quickly.
        let pause = if before.is_none() { POLL } else { Duration::from_secs(args.delay.into()) };
        let until = now.at + pause;
        before = Some(now);
        let mut changed = true;
        while Instant::now() < until {
            if changed {
                tokio::select! {
                    drawn = screen.draw(&top) => drawn?,
                    vanished = session.end() => return Ok(Some(vanished)),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let pressed = tokio::select! {
                vanished = session.end() => return Ok(Some(vanished)),
                pressed = screen.keys(left.min(POLL)) => pressed?,
            };
            let Some(pressed) = pressed else { return Ok(Some(SessionEnd::HungUp)) };
            changed = !pressed.is_empty();
            for event in pressed {
                let Event::Key(key) = event else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                match top.key(key.code, key.modifiers) {
                    KeyAction::Leave => return Ok(None),
                    KeyAction::Nothing => {}
                    KeyAction::Stop(name) => top.message = Some(stop(context.layout, &name).await),
                    KeyAction::Console(name) => {
                        screen.pause().await;
                        let (vanished, message) = console(context, &name, session).await;
                        if vanished.is_some() {
                            return Ok(vanished);
                        }
                        top.message = message;
                        screen.resume()?;
                    }
                }
            }
        }
    }
}

/// Requests a clean stop.
async fn stop(layout: &Layout, name: &str) -> String {
    let Ok(vm) = name.parse() else { return format!("{name}: not a VM name") };
    let asked = async {
        let mut client = Client::connect(&layout.vm(&vm).control_socket()).await?;
        client.command(types::Command::PowerOff { timeout_sec: None }).await
    };
    match asked.await {
        Ok(()) => format!("{name}: asked to shut down"),
        Err(error) => format!("{name}: {error}"),
    }
}

/// Runs a console in this terminal; returns the end of the session, if any, and a message.
async fn console(
    context: &Context<'_>,
    name: &str,
    session: &mut Session,
) -> (Option<SessionEnd>, Option<String>) {
    let Layout { config, state, runtime } = context.layout;
    let directories: [(&str, &PathBuf); 3] =
        [("--config-dir", config), ("--state-dir", state), ("--runtime-dir", runtime)];
    let options = directories.iter().flat_map(|(option, path)| [option.as_ref(), path.as_os_str()]);
    let program = Program::new(context.exe).args(options).args(["console", name]);
    let mut vanished = None;
    let ended = async {
        let child = program.spawn_in_foreground()?;
        let process = Arc::new(Process::open(child.id())?);
        loop {
            tokio::select! {
                exit = process.wait() => return Ok::<Exit, io::Error>(exit),
                end = session.end() => {
                    vanished = Some(end);
                    // The child has the same terminal, but a signal may be sent to this process
                    // only.
                    let _ = process.signal(Signal::TERM);
                }
            }
        }
    };
    match ended.await {
        Ok(Exit::Code(0)) => (vanished, None),
        Ok(_) => (vanished, Some(format!("{name}: no console"))),
        Err(error) => (vanished, Some(format!("{name}: {error}"))),
    }
}
