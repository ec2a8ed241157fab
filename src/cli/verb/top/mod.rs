//! `qvm top`: what VMs use, as it changes; and from there to a console, or to a clean stop.

pub(crate) mod amount;
mod draw;
pub(crate) mod model;
mod screen;

pub(crate) use self::model::{Sort, Wish};

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
    cli::exit::{self, Failure},
    control::{
        client::Client,
        types::{self},
    },
    fleet::rates::{Look, look},
    store::layout::Layout,
    sys::{
        pidfd::{Exit, Process, Signal},
        program::Program,
        session::{Session, SessionEnd},
        storage_reader::StorageReader,
    },
};

/// The arguments of `qvm top`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Seconds between updates
    #[arg(short, long, value_name = "SEC", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    delay: u32,
}

/// What it is told beside that.
pub struct Within<'a> {
    /// Where everything is.
    pub layout: &'a Layout,
    /// `/proc`.
    pub proc: &'a Path,
    /// This program, for a console.
    pub exe: &'a Path,
    /// The terminal has colours.
    pub colours: bool,
}

/// How often a key, or a signal, is looked for while nothing is to be drawn.
const GLANCE: Duration = Duration::from_millis(200);

/// What a terminal answers that is hung up (errno(3)).
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// Shows it until `q`.
///
/// # Errors
/// There is no terminal.
pub async fn run(args: &Args, within: &Within<'_>) -> Result<(), Failure> {
    use std::io::IsTerminal;
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let hint = "`qvm list`, `qvm metrics` and `qvm status --json` are for programs".to_owned();
        return Err(Failure::new(exit::USAGE, "it needs a terminal").hint(hint));
    }
    let cannot = |error: io::Error| match error.raw_os_error() {
        Some(EIO) => Failure::quiet(SessionEnd::HungUp.exit_code()),
        _ => Failure::new(exit::FAILED, format!("the terminal: {error}")),
    };
    let mut session = Session::catch().map_err(cannot)?;
    let mut screen = Screen::enter().map_err(cannot)?;
    let shown = show(args, within, &mut screen, &mut session).await;
    screen.leave().await;
    match shown.map_err(cannot)? {
        None | Some(SessionEnd::NoReader) => Ok(()),
        Some(vanished) => Err(Failure::quiet(vanished.exit_code())),
    }
}

/// Shows it until the operator leaves; or why nobody looks at it any more.
async fn show(
    args: &Args,
    within: &Within<'_>,
    screen: &mut Screen,
    session: &mut Session,
) -> io::Result<Option<SessionEnd>> {
    let mut top = Top {
        rows: vec![],
        sort: Sort::Cpu,
        selected: None,
        asked: None,
        said: None,
        head: String::new(),
        colours: within.colours,
    };
    let (storage, mut before) = (StorageReader::default(), None::<Look>);
    loop {
        let now = tokio::select! {
            now = look(&storage, within.layout, within.proc) => now,
            vanished = session.end() => return Ok(Some(vanished)),
        };
        top.take(before.as_ref(), &now);
        // The first rates come soon: nobody wants to wait for them.
        let pause = if before.is_none() { GLANCE } else { Duration::from_secs(args.delay.into()) };
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
                pressed = screen.keys(left.min(GLANCE)) => pressed?,
            };
            let Some(pressed) = pressed else { return Ok(Some(SessionEnd::HungUp)) };
            changed = !pressed.is_empty();
            for event in pressed {
                let Event::Key(key) = event else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                match top.key(key.code, key.modifiers) {
                    Wish::Leave => return Ok(None),
                    Wish::Nothing => {}
                    Wish::Stop(name) => top.said = Some(stop(within.layout, &name).await),
                    Wish::Console(name) => {
                        screen.pause().await;
                        let (vanished, said) = console(within, &name, session).await;
                        if vanished.is_some() {
                            return Ok(vanished);
                        }
                        top.said = said;
                        screen.resume()?;
                    }
                }
            }
        }
    }
}

/// Begins a clean stop.
async fn stop(layout: &Layout, name: &str) -> String {
    let Ok(vm) = name.parse() else { return format!("{name}: no VM's name") };
    let asked = async {
        let mut client = Client::connect(&layout.vm(&vm).control_socket()).await?;
        client.command(types::Command::PowerOff { timeout_sec: None }).await
    };
    match asked.await {
        Ok(()) => format!("{name}: asked to shut down"),
        Err(error) => format!("{name}: {error}"),
    }
}

/// A console in this terminal, until it is left; whether nobody looks any more, and what there is to say.
async fn console(
    within: &Within<'_>,
    name: &str,
    session: &mut Session,
) -> (Option<SessionEnd>, Option<String>) {
    let Layout { config, state, runtime } = within.layout;
    let directories: [(&str, &PathBuf); 3] =
        [("--config-dir", config), ("--state-dir", state), ("--runtime-dir", runtime)];
    let options = directories.iter().flat_map(|(option, path)| [option.as_ref(), path.as_os_str()]);
    let program = Program::new(within.exe).args(options).args(["console", name]);
    let mut vanished = None;
    let ended = async {
        let child = program.spawn_in_foreground()?;
        let process = Arc::new(Process::open(child.id())?);
        loop {
            tokio::select! {
                exit = process.wait() => return Ok::<Exit, io::Error>(exit),
                end = session.end() => {
                    vanished = Some(end);
                    // It has the same terminal, but signals may be for us alone.
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
