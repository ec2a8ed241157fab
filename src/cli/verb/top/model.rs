//! The state of `qvm top`.

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::amount::amount;
use crate::{
    control::types::State,
    fleet::rates::{Rates, Sample, rates},
};

/// The contents of the screen and the selection.
pub(crate) struct Top {
    pub(super) rows: Vec<Rates>,
    pub(super) sort: Sort,
    /// The selected VM, by name, because rows move.
    pub(super) selected: Option<String>,
    /// The VM to stop after a confirmation.
    pub(super) asked: Option<String>,
    pub(super) message: Option<String>,
    pub(super) head: String,
    pub(super) colours: bool,
}

impl Top {
    pub(super) fn update(&mut self, before: Option<&Sample>, now: &Sample) {
        self.rows = rates(before, now);
        self.order();
        let running = self.rows.iter().filter(|row| row.state == State::Running).count();
        let resident: u64 = self.rows.iter().filter_map(|row| row.resident).sum();
        let of =
            now.memory.map_or_else(String::new, |bytes| format!(" of {}", amount(bytes as f64)));
        // The sum of an empty iterator is -0.
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

    pub(super) fn order(&mut self) {
        let sort = self.sort;
        self.rows
            .sort_by(|a, b| sort.key(b).total_cmp(&sort.key(a)).then_with(|| a.name.cmp(&b.name)));
        let there = |name: &String| self.rows.iter().any(|row| row.name == *name);
        if !self.selected.as_ref().is_some_and(there) {
            self.selected = self.rows.first().map(|row| row.name.clone());
        }
    }

    pub(super) fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.name == *selected)
    }

    pub(super) fn step(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = self.rows.get(at).map(|row| row.name.clone());
    }

    pub(super) fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> KeyAction {
        self.message = None;
        if let Some(name) = self.asked.take() {
            return match code {
                KeyCode::Char('y') => KeyAction::Stop(name),
                _ => KeyAction::Nothing,
            };
        }
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => {
                return KeyAction::Leave;
            }
            KeyCode::Char('q') | KeyCode::Esc => return KeyAction::Leave,
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
                    return KeyAction::Console(name);
                }
            }
            _ => {}
        }
        KeyAction::Nothing
    }
}

/// The sort order of the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    Cpu,
    Memory,
    Disk,
    Net,
    Name,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Disk,
            Self::Disk => Self::Net,
            Self::Net => Self::Name,
            Self::Name => Self::Cpu,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Disk => "disks",
            Self::Net => "network",
            Self::Name => "name",
        }
    }

    /// Returns the sort value: the largest first, unknown last.
    pub(super) fn key(self, rates: &Rates) -> f64 {
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

/// The request of a key press.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KeyAction {
    Nothing,
    Leave,
    Console(String),
    Stop(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_requires_confirmation() {
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
            message: None,
            head: String::new(),
            colours: false,
        };
        top.order();
        let mut press = |code| top.key(code, KeyModifiers::NONE);
        assert_eq!(press(KeyCode::Down), KeyAction::Nothing);
        assert_eq!(press(KeyCode::Char('S')), KeyAction::Nothing);
        assert_eq!(press(KeyCode::Char('n')), KeyAction::Nothing);
        assert_eq!(press(KeyCode::Char('S')), KeyAction::Nothing);
        assert_eq!(press(KeyCode::Char('y')), KeyAction::Stop("b".into()));
        assert_eq!(press(KeyCode::Home), KeyAction::Nothing);
        assert_eq!(press(KeyCode::Enter), KeyAction::Console("a".into()));
        assert_eq!(press(KeyCode::Char('q')), KeyAction::Leave);
    }
}
