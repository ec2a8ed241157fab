//! A program on a terminal: what it shows, and where an operator types. It ends with the test.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

use super::until;

/// Columns and lines of the terminal: those of a real one of old.
pub(crate) const COLUMNS: u16 = 80;
pub(crate) const LINES: u16 = 24;

pub(crate) struct Terminal {
    pub(crate) child: Child,
    side: OwnedFd,
    operator: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub(crate) fn open(command: &mut Command) -> Self {
        let size = Winsize { ws_row: LINES, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command
            .env("TERM", "xterm-256color")
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let operator = File::from(pty.master);
        let shown = Arc::new(Mutex::new(vec![]));
        let (mut screen, to) = (operator.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                to.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, side: pty.slave, operator, shown }
    }

    /// All that was ever written to it.
    pub(crate) fn written(&self) -> Vec<u8> {
        self.shown.lock().unwrap().clone()
    }

    /// Waits until `text` was written to it so many times.
    pub(crate) fn shows(&self, text: &str, count: usize) {
        until(&format!("the terminal shows `{text}`"), || {
            String::from_utf8_lossy(&self.written()).matches(text).count() >= count
        });
    }

    pub(crate) fn types(&mut self, keys: &[u8]) {
        self.operator.write_all(keys).unwrap();
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(&self.side).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    /// Waits for the program's end; its exit code, `None` after a signal.
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
