//! `qvm top`: what VMs use, as it changes; and from there to a console, or to a clean stop.

mod draw;
mod screen;

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use self::draw::amount;
use self::screen::Screen;
use crate::{
    cli::exit::{self, Failure},
    control::{
        client::Client,
        types::{self, State},
    },
    fleet::rates::{Look, Rates, look, rates},
    store::layout::Layout,
    sys::{
        pidfd::{Exit, Process, Signal},
        session::{Session, Vanished},
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

/// By what the VMs are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Cpu,
    Memory,
    Disk,
    Net,
    Name,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Disk,
            Self::Disk => Self::Net,
            Self::Net => Self::Name,
            Self::Name => Self::Cpu,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Disk => "disks",
            Self::Net => "network",
            Self::Name => "name",
        }
    }

    /// The most first; without a number, last.
    fn key(self, rates: &Rates) -> f64 {
        let sum = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (None, None) => -1.0,
            (one, other) => one.unwrap_or_default() + other.unwrap_or_default(),
        };
        match self {
            Self::Cpu => rates.cpu.unwrap_or(-1.0),
            Self::Memory => rates.resident.map_or(-1.0, |bytes| bytes as f64),
            Self::Disk => sum(rates.read, rates.written),
            Self::Net => sum(rates.received, rates.sent),
            Self::Name => 0.0,
        }
    }
}

/// What is on the screen.
struct Top {
    rows: Vec<Rates>,
    sort: Sort,
    /// The VM that is selected, by name: rows move.
    selected: Option<String>,
    /// A VM that is to be stopped, if that is confirmed.
    asked: Option<String>,
    said: Option<String>,
    head: String,
    colours: bool,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Leave,
    Console(String),
    Stop(String),
}

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
        Some(EIO) => Failure::quiet(Vanished::HungUp.exit_code()),
        _ => Failure::new(exit::FAILED, format!("the terminal: {error}")),
    };
    let mut session = Session::catch().map_err(cannot)?;
    let mut screen = Screen::enter().map_err(cannot)?;
    let shown = show(args, within, &mut screen, &mut session).await;
    screen.leave().await;
    match shown.map_err(cannot)? {
        None | Some(Vanished::NoReader) => Ok(()),
        Some(vanished) => Err(Failure::quiet(vanished.exit_code())),
    }
}

/// Shows it until the operator leaves; or why nobody looks at it any more.
async fn show(
    args: &Args,
    within: &Within<'_>,
    screen: &mut Screen,
    session: &mut Session,
) -> io::Result<Option<Vanished>> {
    let mut top = Top {
        rows: vec![],
        sort: Sort::Cpu,
        selected: None,
        asked: None,
        said: None,
        head: String::new(),
        colours: within.colours,
    };
    let mut before: Option<Look> = None;
    loop {
        let now = tokio::select! {
            now = look(within.layout, within.proc) => now,
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
            let Some(pressed) = pressed else { return Ok(Some(Vanished::HungUp)) };
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
) -> (Option<Vanished>, Option<String>) {
    let Layout { config, state, runtime } = within.layout;
    let directories: [(&str, &PathBuf); 3] =
        [("--config-dir", config), ("--state-dir", state), ("--runtime-dir", runtime)];
    let mut command = Command::new(within.exe);
    for (option, directory) in directories {
        command.arg(option).arg(directory);
    }
    let mut vanished = None;
    let ended = async {
        let child = command.args(["console", name]).spawn()?;
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

impl Top {
    fn take(&mut self, before: Option<&Look>, now: &Look) {
        self.rows = rates(before, now);
        self.order();
        let running = self.rows.iter().filter(|row| row.state == State::Running).count();
        let resident: u64 = self.rows.iter().filter_map(|row| row.resident).sum();
        let of =
            now.memory.map_or_else(String::new, |bytes| format!(" of {}", amount(bytes as f64)));
        // The sum of nothing is -0.
        let cpu = self.rows.iter().filter_map(|row| row.cpu).fold(0.0, |sum, cpu| sum + cpu);
        let pressure = now.pressure.map_or_else(String::new, |p| {
            format!(
                "  PSI cpu {:.0}% mem {:.0}% io {:.0}%",
                p.cpu.some_avg10, p.memory.some_avg10, p.io.some_avg10
            )
        });
        self.head = format!(
            "{running} of {} run  CPU {cpu:.0}%  memory {}{of}{pressure}",
            self.rows.len(),
            amount(resident as f64),
        );
    }

    fn order(&mut self) {
        let sort = self.sort;
        self.rows
            .sort_by(|a, b| sort.key(b).total_cmp(&sort.key(a)).then_with(|| a.name.cmp(&b.name)));
        let there = |name: &String| self.rows.iter().any(|row| row.name == *name);
        if !self.selected.as_ref().is_some_and(there) {
            self.selected = self.rows.first().map(|row| row.name.clone());
        }
    }

    fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.name == *selected)
    }

    fn step(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = self.rows.get(at).map(|row| row.name.clone());
    }

    fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Wish {
        self.said = None;
        if let Some(name) = self.asked.take() {
            return match code {
                KeyCode::Char('y') => Wish::Stop(name),
                _ => Wish::Nothing,
            };
        }
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Wish::Leave,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Leave,
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.order();
            }
            KeyCode::Char('S') => self.asked = self.selected.clone(),
            KeyCode::Char('c') | KeyCode::Enter => {
                if let Some(name) = self.selected.clone() {
                    return Wish::Console(name);
                }
            }
            _ => {}
        }
        Wish::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_asked_for_twice() {
        let row = |name: &str| Rates {
            name: name.into(),
            state: State::Running,
            cpu: None,
            delay: None,
            resident: None,
            given: 0,
            read: None,
            written: None,
            latency: None,
            received: None,
            sent: None,
            pressure: None,
            pending: 0,
        };
        let mut top = Top {
            rows: vec![row("a"), row("b")],
            sort: Sort::Name,
            selected: None,
            asked: None,
            said: None,
            head: String::new(),
            colours: false,
        };
        top.order();
        let mut press = |code| top.key(code, KeyModifiers::NONE);
        assert_eq!(press(KeyCode::Down), Wish::Nothing);
        assert_eq!(press(KeyCode::Char('S')), Wish::Nothing);
        assert_eq!(press(KeyCode::Char('n')), Wish::Nothing);
        assert_eq!(press(KeyCode::Char('S')), Wish::Nothing);
        assert_eq!(press(KeyCode::Char('y')), Wish::Stop("b".into()));
        assert_eq!(press(KeyCode::Home), Wish::Nothing);
        assert_eq!(press(KeyCode::Enter), Wish::Console("a".into()));
        assert_eq!(press(KeyCode::Char('q')), Wish::Leave);
    }
}
