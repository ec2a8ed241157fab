//! `qvm top` on a terminal of 80 columns and 24 lines.

use qvm::value::ErrorCode;

use crate::lab::{
    Lab, guest,
    terminal::{COLUMNS, LINES, Terminal},
    until,
};

/// `qvm` on a terminal, and its output.
struct Screen(Terminal);

impl Screen {
    fn new(lab: &Lab, arguments: &[&str]) -> Self {
        Self(Terminal::open(&mut lab.command(arguments)))
    }

    fn text(&self) -> String {
        let (lines, columns) = (LINES.try_into().unwrap(), COLUMNS.try_into().unwrap());
        let mut screen = vt100::Parser::new(lines, columns, 0);
        screen.process(&self.0.written());
        screen.screen().contents()
    }

    fn shows(&self, text: &str) {
        until(&format!("`{text}` is shown"), || self.text().contains(text));
    }

    fn press(&mut self, keys: &str) {
        self.0.types(keys.as_bytes());
    }
}

fn line<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default()
}

#[test]
fn top_sorts_and_stops_in_80_columns() {
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
        // The other one may still be booting.
        let is_first = text.lines().nth(2).is_some_and(|line| line.starts_with("busy"));
        // On a loaded host it gets a small share of a CPU.
        is_first && cpu.parse::<f64>().is_ok_and(|cpu| cpu > 2.0)
    });
    assert!(top.0.is_raw());
    let mut text = String::new();
    until("the busy one is first", || {
        text = top.text();
        text.lines().nth(2).is_some_and(|line| line.starts_with("busy"))
    });
    assert!(text.lines().all(|line| line.chars().count() <= usize::from(COLUMNS)), "{text}");
    for head in ["NAME", "CPU%", "WAIT%", "MEM", "DISK r/w", "LAT", "NET in/out", "PSI%"] {
        assert!(text.contains(head), "{head}\n{text}");
    }
    // Sorted by usage; stopped VMs are last.
    let names: Vec<&str> =
        text.lines().skip(2).take(3).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!((names[0].starts_with("busy"), names[2]), (true, "down"), "{text}");
    assert!(line(&text, "down").contains("stopped"), "{text}");

    // Sorted by name, then the second VM: its console, and back.
    top.press("ssss");
    top.shows("sort: name");
    top.press("\x1b[F");
    top.press("c");
    top.shows("Connected to idle; Ctrl-] leaves");
    // At the guest's keyboard; the guest prints the key on its console.
    lab.ok(&["type", "idle", "greetings"]);
    top.shows("greetings");
    top.press("\x1d");
    top.shows("2 of 3 run");
    // A stop requires a confirmation.
    top.press("S");
    top.shows("shut idle down? y: yes, any other key: no");
    top.press("n");
    top.shows("S stop");
    assert_eq!(lab.status("idle")["state"], "running");
    top.press("Sy");
    top.shows("1 of 3 run");
    assert_eq!(lab.last_reason("idle"), "stopped");
    top.press("q");
    assert_eq!(top.0.code(), Some(0));
    assert!(!top.0.is_raw(), "the terminal is not as it was");
    lab.ok(&["kill", "busy-with-a-long-name"]);
}

#[test]
fn top_restores_the_terminal() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    let mut top = Screen::new(&lab, &["top"]);
    top.shows("0 of 1 run");
    crate::lab::signal(top.0.child.id().try_into().unwrap(), 15);
    assert_eq!(top.0.code(), Some(143));
    assert!(!top.0.is_raw());
    lab.refused(&["top"]).is(ErrorCode::Usage, 2).golden("cli", "top-without-terminal");
}
