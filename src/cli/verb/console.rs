//! `qvm console`: the serial console; Ctrl-] leaves.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
};

use crate::{
    cli::exit::Failure,
    control::client::Client,
    store::{layout::Layout, running},
    sys::{
        session::{Session, SessionEnd},
        terminal::{self, Output},
    },
    value::VmName,
};

/// The arguments of `qvm console`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// Print output only; standard input is not read, and its end does not end the command
    #[arg(long)]
    read_only: bool,
    /// Print this many KiB of earlier output first [default: 16 on a terminal, else 0]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u64).range(0..=256))]
    scrollback: Option<u64>,
}

/// Ctrl-], as in telnet(1) and virsh(1).
const LEAVE: u8 = 0x1d;
/// The scrollback printed on a terminal, in KiB: several screens.
const SCROLLBACK: u64 = 16;
/// How long to wait for the next supervisor.
const NEXT_SUPERVISOR_LIMIT: Duration = Duration::from_secs(60);
/// The interval of attempts to connect to it.
const POLL: Duration = Duration::from_millis(100);
/// Resets terminal modes that the guest may have set: colors, cursor, bracketed paste, mouse
/// reports.
const RESET_TERMINAL: &str = "\x1b[0m\x1b[?25h\x1b[?2004l\x1b[?1000l\n";

/// Shows the console until Ctrl-] or until the VM is stopped; it survives a replaced supervisor.
/// Without a terminal it copies until the end of standard input, unless it is read-only.
///
/// # Errors
/// The VM is not running, or the terminal or the reader of standard output is gone.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let client = super::connect(layout, name).await?;
    let cannot = |error: io::Error| Failure::from_error(&error).about(name);
    let session = Session::catch().map_err(cannot)?;
    let raw = terminal::Raw::enter().map_err(cannot)?;
    let on_terminal = raw.is_some();
    let scrollback = args.scrollback.unwrap_or(if on_terminal { SCROLLBACK } else { 0 }) << 10;
    let attached = client.console(args.read_only, scrollback).await;
    let attached = super::or_refused(attached, layout, name).await?;
    let mut messages = Output::stderr();
    if on_terminal {
        let text = format!("Connected to {name}; Ctrl-] leaves{}\r\n", size());
        let _ = messages.write(text.into_bytes()).await;
    }
    // Keys are read for Ctrl-] even if the console is read-only.
    let mut operator = Operator {
        input: (on_terminal || !args.read_only).then(terminal::input),
        session,
        on_terminal,
        read_only: args.read_only,
    };
    let mut out = Output::stdout();
    let mut left = copy(attached, &mut operator, &mut out).await;
    while let Ok(Ended::Closed) = left {
        left = match next(layout, name, args.read_only, &mut operator).await {
            Ok(Some(next)) => copy(next, &mut operator, &mut out).await,
            Ok(None) => break,
            Err(vanished) => Ok(Ended::Vanished(vanished)),
        };
    }
    out.finish_with(b"").await;
    if on_terminal {
        drop(raw);
        messages.finish_with(RESET_TERMINAL.as_bytes()).await;
    }
    match left? {
        Ended::Vanished(SessionEnd::NoReader) | Ended::ByOperator | Ended::Closed => Ok(()),
        Ended::Vanished(vanished) => Err(Failure::quiet(vanished.exit_code())),
    }
}

/// A serial line does not transport the size of the terminal: returns the command that sets it in
/// the guest, if the size is not the default.
fn size() -> String {
    match terminal::size() {
        Some((80, 24)) | None => String::new(),
        Some((columns, rows)) => {
            format!("; in the guest: stty rows {rows} cols {columns}")
        }
    }
}

/// The keyboard input and the session of the operator.
struct Operator {
    input: Option<mpsc::Receiver<Vec<u8>>>,
    session: Session,
    on_terminal: bool,
    read_only: bool,
}

/// Why the console session ended.
enum Ended {
    /// Ctrl-] was typed, or standard input has ended.
    ByOperator,
    /// The supervisor closed the connection.
    Closed,
    /// The terminal or the reader of standard output is gone.
    Vanished(SessionEnd),
}

/// What the operator did.
enum Input {
    Typed(Vec<u8>),
    /// Standard input has ended.
    Left,
    Vanished(SessionEnd),
}

impl Operator {
    async fn next(&mut self) -> Input {
        let typed = async {
            match &mut self.input {
                Some(input) => input.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            vanished = self.session.end() => Input::Vanished(vanished),
            typed = typed => match typed {
                Some(typed) => Input::Typed(typed),
                // A terminal in raw mode has no end of input but its hangup.
                None if self.on_terminal => Input::Vanished(SessionEnd::HungUp),
                None => Input::Left,
            },
        }
    }
}

async fn copy(
    console: UnixStream,
    operator: &mut Operator,
    out: &mut Output,
) -> Result<Ended, Failure> {
    let (mut from, mut to) = console.into_split();
    let mut bytes = vec![0; 16 << 10];
    let mut unwritten: Option<Vec<u8>> = None;
    loop {
        // A stopped terminal (Ctrl-S) delays neither keys nor signals.
        tokio::select! {
            room = out.has_room(), if unwritten.is_some() => {
                room.map_err(|error| Failure::output(&error))?;
                let all = unwritten.take().unwrap_or_default();
                out.write(all).await.map_err(|error| Failure::output(&error))?;
            }
            read = from.read(&mut bytes), if unwritten.is_none() => match read {
                Ok(0) | Err(_) => return Ok(Ended::Closed),
                Ok(n) => unwritten = Some(bytes[..n].to_vec()),
            },
            did = operator.next() => match did {
                Input::Left => return Ok(Ended::ByOperator),
                Input::Vanished(vanished) => return Ok(Ended::Vanished(vanished)),
                Input::Typed(typed) => {
                    let (keys, leave) = keys(&typed, operator.on_terminal);
                    // The end of the console reports a closed console.
                    if !operator.read_only {
                        tokio::select! {
                            _ = to.write_all(keys) => {}
                            // A guest that does not read delays nothing either.
                            vanished = operator.session.end() => {
                                return Ok(Ended::Vanished(vanished));
                            }
                        }
                    }
                    if leave {
                        return Ok(Ended::ByOperator);
                    }
                }
            },
        }
    }
}

/// The console of the next supervisor, as long as there is a QEMU for one.
async fn next(
    layout: &Layout,
    name: &VmName,
    read_only: bool,
    operator: &mut Operator,
) -> Result<Option<UnixStream>, SessionEnd> {
    let paths = layout.vm(name);
    let until = tokio::time::Instant::now() + NEXT_SUPERVISOR_LIMIT;
    // Without a QEMU there is nothing to wait for: the VM is down.
    let may_run = || running::find(&paths).map_or(true, |found| found.is_running());
    while tokio::time::Instant::now() < until && may_run() {
        if let Ok(client) = Client::connect(&paths.control_socket()).await
            && let Ok(console) = client.console(read_only, 0).await
        {
            return Ok(Some(console));
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            did = operator.next() => match did {
                Input::Left => return Ok(None),
                Input::Vanished(vanished) => return Err(vanished),
                Input::Typed(typed) if keys(&typed, operator.on_terminal).1 => return Ok(None),
                Input::Typed(_) => {}
            },
        }
    }
    Ok(None)
}

/// What is for the guest of what was typed, and whether Ctrl-] came after it: on a terminal it
/// leaves, else it is a byte as any.
pub fn keys(typed: &[u8], terminal: bool) -> (&[u8], bool) {
    match typed.iter().position(|key| terminal && *key == LEAVE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_bracket_ends_only_terminals() {
        assert_eq!(keys(b"ls\x1dx", true), (&b"ls"[..], true));
        assert_eq!(keys(b"ls\x1dx", false), (&b"ls\x1dx"[..], false));
        assert_eq!(keys(b"ls", true), (&b"ls"[..], false));
    }
}
