//! A program on a pseudoterminal, which ends with the test.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{FdFlags, fcntl_setfd},
};

use super::until;

/// The columns and lines of the terminal.
pub(crate) const COLUMNS: u16 = 80;
pub(crate) const LINES: u16 = 24;

pub(crate) struct Terminal {
    pub(crate) child: Child,
    /// The program's side and the operator's side; `None` after a hangup.
    ends: Option<(OwnedFd, File)>,
    shown: Arc<Mutex<Vec<u8>>>,
    hangs_up: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
}

impl Terminal {
    pub(crate) fn open(command: &mut Command) -> Self {
        let size = Winsize { ws_row: LINES, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        // No other process may have the operator's side open: it could not be hung up.
        for end in [&pty.slave, &pty.master] {
            fcntl_setfd(end, FdFlags::CLOEXEC).unwrap();
        }
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command
            .env("TERM", "xterm-256color")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        // The command keeps copies.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let operator = File::from(pty.master);
        let (shown, hangs_up) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicBool::new(false)));
        let (mut screen, to, end) =
            (operator.try_clone().unwrap(), shown.clone(), hangs_up.clone());
        let reading = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !end.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(&screen, PollFlags::IN)];
                let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                if poll(&mut fds, Some(&pause)).unwrap_or(0) == 0 {
                    continue;
                }
                let Ok(count @ 1..) = screen.read(&mut bytes) else { return };
                to.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        let (ends, reading) = (Some((pty.slave, operator)), Some(reading));
        Self { child, ends, shown, hangs_up, reading }
    }

    /// Closes the operator's side, and the test's copy of the program's side.
    pub(crate) fn hang_up(&mut self) {
        self.hold();
        self.ends = None;
    }

    /// Stops reading the output.
    pub(crate) fn hold(&mut self) {
        self.hangs_up.store(true, Ordering::Relaxed);
        self.reading.take().unwrap().join().unwrap();
    }

    /// The terminal attributes that programs change.
    pub(crate) fn modes(&self) -> String {
        format!("{:?}", tcgetattr(&self.ends.as_ref().unwrap().0).unwrap())
    }

    /// The complete output.
    pub(crate) fn written(&self) -> Vec<u8> {
        self.shown.lock().unwrap().clone()
    }

    /// Waits until the output contains `text` this number of times.
    pub(crate) fn shows(&self, text: &str, count: usize) {
        until(&format!("the terminal shows `{text}`"), || {
            String::from_utf8_lossy(&self.written()).matches(text).count() >= count
        });
    }

    pub(crate) fn types(&mut self, keys: &[u8]) {
        self.ends.as_mut().unwrap().1.write_all(keys).unwrap();
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.ends.as_ref().unwrap().0).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    /// Waits for the end of the program; returns its exit code, `None` after a signal.
    pub(crate) fn code(&mut self) -> Option<i32> {
        let mut ended = None;
        until("the program on the terminal ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
