//! `qvm top` on a terminal of 80 columns and 24 lines.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod lab;

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use lab::{Lab, guest, until};
use nix::{
    pty::{Winsize, openpty},
    sys::termios::{LocalFlags, tcgetattr},
};

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// A program on a terminal, and what the terminal shows.
struct Screen {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    shown: Arc<Mutex<vt100::Parser>>,
}

impl Screen {
    fn new(lab: &Lab, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = lab
            .command(arguments)
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let (rows, columns) = (ROWS.try_into().unwrap(), COLUMNS.try_into().unwrap());
        let shown = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let keys = File::from(pty.master);
        let (mut from, to) = (keys.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                to.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self { child, keys, terminal: pty.slave, shown }
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().screen().contents()
    }

    fn shows(&self, text: &str) {
        until(&format!("`{text}` is shown"), || self.text().contains(text));
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ICANON)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default()
}

#[test]
fn it_sorts_shows_a_console_and_stops_within_80_columns() {
    let (Some(spin), Some(image)) = (guest("boot-spin.qcow2"), guest("boot-keys.qcow2")) else {
        return;
    };
    let lab = Lab::new();
    lab.vm("busy-with-a-long-name", &spin, "");
    lab.vm("idle", &image, "");
    lab.vm("down", &image, "");
    lab.ok(&["start", "busy-with-a-long-name", "idle"]);
    let mut top = Screen::new(&lab, &["top"]);
    top.shows("2 of 3 run");
    until("the busy one has used a CPU", || {
        let text = top.text();
        let cpu = line(&text, "busy-with").split_whitespace().nth(2).unwrap_or_default();
        cpu.parse::<f64>().is_ok_and(|cpu| cpu > 20.0)
    });
    assert!(top.raw());
    let text = top.text();
    assert!(text.lines().all(|line| line.chars().count() <= usize::from(COLUMNS)), "{text}");
    for head in ["NAME", "CPU%", "WAIT%", "MEM", "DISK r/w", "LAT", "NET in/out", "PSI%"] {
        assert!(text.contains(head), "{head}\n{text}");
    }
    // What is used first, and what does not run last.
    let names: Vec<&str> =
        text.lines().skip(2).take(3).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!((names[0].starts_with("busy"), names[2]), (true, "down"), "{text}");
    assert!(line(&text, "down").contains("stopped"), "{text}");

    // By name, then the second of them: its console, and back.
    top.press("ssss");
    top.shows("sort: name");
    top.press("\x1b[F");
    top.press("c");
    top.shows("Connected to idle; Ctrl-] leaves");
    // At the guest's keyboard, and it says on its console what it reads there.
    lab.ok(&["type", "idle", "greetings"]);
    top.shows("greetings");
    top.press("\x1d");
    top.shows("2 of 3 run");
    // A stop is asked for again.
    top.press("S");
    top.shows("shut idle down? y, or any other key");
    top.press("n");
    top.shows("S stop");
    assert_eq!(lab.status("idle")["state"], "running");
    top.press("Sy");
    top.shows("1 of 3 run");
    assert_eq!(lab.last_reason("idle"), "stopped");
    top.press("q");
    until("it has gone", || top.child.try_wait().unwrap().is_some());
    assert!(!top.raw(), "the terminal is not as it was");
    lab.ok(&["kill", "busy-with-a-long-name"]);
}

#[test]
fn it_leaves_the_terminal_as_it_was_after_a_signal_and_wants_one() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let mut top = Screen::new(&lab, &["top"]);
    top.shows("0 of 1 run");
    lab::signal(top.child.id().try_into().unwrap(), 15);
    until("it has gone", || top.child.try_wait().unwrap().is_some());
    assert!(!top.raw());
    let output = lab.qvm(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it needs a terminal"), "{output:?}");
}
