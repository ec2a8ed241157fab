//! The signals of `qvm run`, as a stream.

use std::{io, os::unix::net::UnixStream as StdStream};

use nix::{
    libc::SIGRTMIN,
    sys::signal::{SigSet, Signal as Number},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use tokio::{io::AsyncReadExt, net::UnixStream, sync::mpsc};

use super::tasks::Tasks;

/// The meaning of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, or SIGRTMIN+4, which asks a container to power off (systemd(1), `machinectl
    /// poweroff`): stop the VM, and faster if repeated.
    Stop,
    /// SIGINT: Ctrl-C, or `machinectl reboot`.
    Interrupt,
    /// SIGHUP: reload the VM file.
    Reload,
    /// SIGUSR2: re-execute the program.
    Reexec,
}

/// A stream of received signals.
#[derive(Debug)]
pub struct Signals {
    queue: mpsc::Receiver<Signal>,
    /// One task reads the pipe of each meaning.
    _tasks: Tasks,
}

impl Signals {
    /// Catches the signals; requires a runtime.
    ///
    /// # Errors
    /// No free descriptor.
    pub fn new() -> io::Result<Self> {
        let (sender, queue) = mpsc::channel(8);
        let mut tasks = Tasks::default();
        for (signal, numbers) in [
            (Signal::Stop, &[SIGTERM, SIGRTMIN() + 4][..]),
            (Signal::Interrupt, &[SIGINT]),
            (Signal::Reload, &[SIGHUP]),
            (Signal::Reexec, &[SIGUSR2]),
        ] {
            let (near, far) = StdStream::pair()?;
            near.set_nonblocking(true)?;
            for number in numbers {
                signal_hook::low_level::pipe::register(*number, far.try_clone()?)?;
            }
            let (mut near, sender) = (UnixStream::from_std(near)?, sender.clone());
            tasks.spawn(async move {
                // Each signal writes one byte, so repeated signals are counted.
                while near.read_u8().await.is_ok() {
                    if sender.send(signal).await.is_err() {
                        return;
                    }
                }
            });
        }
        // Delivers signals that were blocked during a re-execution.
        all().thread_unblock()?;
        Ok(Self { queue, _tasks: tasks })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        match self.queue.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Blocks these signals. Call this before re-execution: the mask survives exec but handlers do not,
/// and a SIGTERM in between would kill the process instead of stopping the guest.
///
/// # Errors
/// None on Linux.
pub fn block() -> io::Result<()> {
    Ok(all().thread_block()?)
}

fn all() -> SigSet {
    SigSet::from_iter([Number::SIGTERM, Number::SIGINT, Number::SIGHUP, Number::SIGUSR2])
}
