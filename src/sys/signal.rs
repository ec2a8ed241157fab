//! The signals of `qvm run`, as a stream.

use std::{io, os::unix::net::UnixStream as StdStream};

use nix::{
    libc::SIGRTMIN,
    sys::signal::{SigSet, Signal as Number},
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use tokio::{io::AsyncReadExt, net::UnixStream, sync::mpsc};

use super::tasks::Tasks;

/// What a signal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, and SIGRTMIN+4, which is a container's way to be asked to power off (systemd(1), `machinectl poweroff`): stop, and a
    /// second time: harder.
    Stop,
    /// SIGINT: Ctrl-C, or `machinectl reboot`.
    Interrupt,
    /// SIGHUP: read the VM file again.
    Reload,
    /// SIGUSR2: let the program's file take over in this process.
    Reexec,
}

/// The stream.
#[derive(Debug)]
pub struct Signals {
    queue: mpsc::Receiver<Signal>,
    /// One reads the pipe of each meaning.
    _tasks: Tasks,
}

impl Signals {
    /// Begins to catch them; needs a runtime.
    ///
    /// # Errors
    /// No more descriptors.
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
                // One byte a signal: two that come one after the other are two.
                while near.read_u8().await.is_ok() {
                    if sender.send(signal).await.is_err() {
                        return;
                    }
                }
            });
        }
        // What was held back over a re-execution comes through now.
        all().thread_unblock()?;
        Ok(Self { queue, _tasks: tasks })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        match self.queue.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Holds these signals back from now on. To be called before this program executes itself anew: the mask survives
/// exec while handlers do not, and a SIGTERM in between would kill it instead of stopping the guest.
///
/// # Errors
/// Never on Linux.
pub fn block() -> io::Result<()> {
    Ok(all().thread_block()?)
}

fn all() -> SigSet {
    SigSet::from_iter([Number::SIGTERM, Number::SIGINT, Number::SIGHUP, Number::SIGUSR2])
}
