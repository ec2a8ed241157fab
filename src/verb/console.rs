//! `qvm console`: the serial console; Ctrl-] leaves.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{exit::Failure, host::terminal, plan::layout::Layout, value::VmName};

/// What `qvm console` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    name: VmName,
    /// Only look: what is typed is not sent
    #[arg(long)]
    read_only: bool,
}

/// Ctrl-], as telnet and virsh have it.
const LEAVE: u8 = 0x1d;

/// Shows the console until Ctrl-] or until the VM is down. Without a terminal it copies.
///
/// # Errors
/// The VM is not running.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let client = super::connect(layout, &args.name).await?;
    let attached = client.console(args.read_only).await;
    let attached = attached.map_err(|error| super::refused(&error, layout, &args.name))?;
    let signals = terminal::signals().and_then(UnixStream::from_std);
    let cannot = |error: io::Error| Failure::of(&error).about(&args.name);
    let signals = signals.map_err(cannot)?;
    let raw = terminal::Raw::enter().map_err(cannot)?;
    if raw.is_some() {
        eprint!("Connected to {}; Ctrl-] leaves\r\n", args.name);
    }
    let left = copy(attached, signals, raw.is_some(), args.read_only).await;
    if raw.is_some() {
        drop(raw);
        eprintln!();
    }
    left
}

async fn copy(
    console: UnixStream,
    mut signals: UnixStream,
    terminal: bool,
    read_only: bool,
) -> Result<(), Failure> {
    let (mut from, mut to) = console.into_split();
    // A terminal is read all the same, for Ctrl-].
    let mut input = (terminal || !read_only).then(terminal::input);
    let mut bytes = vec![0; 16 << 10];
    let mut signal = [0; 1];
    loop {
        tokio::select! {
            read = from.read(&mut bytes) => match read {
                Ok(0) | Err(_) => return Ok(()),
                Ok(n) => super::print_bytes(&bytes[..n])?,
            },
            _ = signals.read(&mut signal) => return Ok(()),
            typed = next(&mut input) => match typed {
                Some(typed) => {
                    let (keys, leave) = keys(&typed, terminal);
                    // A console that closed says so by its end.
                    if !read_only {
                        let _ = to.write_all(keys).await;
                    }
                    if leave {
                        return Ok(());
                    }
                }
                None if terminal => return Ok(()),
                None => input = None,
            },
        }
    }
}

/// Never, where there is no input any more.
async fn next(input: &mut Option<tokio::sync::mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

/// What is for the guest, and whether Ctrl-] came after it.
fn keys(typed: &[u8], terminal: bool) -> (&[u8], bool) {
    match typed.iter().position(|key| terminal && *key == LEAVE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_bracket_leaves_a_terminal_and_is_a_byte_elsewhere() {
        assert_eq!(keys(b"ls\x1dx", true), (&b"ls"[..], true));
        assert_eq!(keys(b"ls\x1dx", false), (&b"ls\x1dx"[..], false));
        assert_eq!(keys(b"ls", true), (&b"ls"[..], false));
    }
}
