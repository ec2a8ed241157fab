//! The drawing of `qvm top`: a line about the host, a row for each VM, and the keys.

use ratatui::{
    Frame,
    layout::{Constraint, Layout as Areas, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::{amount::amount, model::Top};
use crate::control::types::State;

impl Top {
    pub(crate) fn draw(&self, frame: &mut Frame<'_>) {
        let [head, body, foot] =
            Areas::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head.as_str()), head);
        self.table(frame, body);
        let foot_text = match (&self.asked, &self.message) {
            (Some(name), _) => format!("shut {name} down? y: yes, any other key: no"),
            (None, Some(message)) => message.clone(),
            (None, None) => {
                format!("↑↓ select  s sort: {}  c console  S stop  q quit", self.sort.word())
            }
        };
        frame.render_widget(Paragraph::new(Line::from(foot_text)), foot);
    }

    fn table(&self, frame: &mut Frame<'_>, area: Rect) {
        let colour = |colour: Color| match self.colours {
            true => Style::new().fg(colour),
            false => Style::new(),
        };
        let rows = self.rows.iter().map(|row| {
            let state = match row.state {
                State::Running => colour(Color::Green),
                State::Failed | State::Unknown => colour(Color::Red),
                State::Stopped => colour(Color::DarkGray),
                State::Starting | State::Paused | State::Stopping => colour(Color::Yellow),
            };
            let right = |text: String| Cell::from(Line::from(text).right_aligned());
            let percent =
                |value: Option<f64>| right(value.map_or_else(none, |v| format!("{v:.0}")));
            let two = |one: Option<f64>, other: Option<f64>| {
                right(match (one, other) {
                    (None, None) => none(),
                    (one, other) => format!(
                        "{}/{}",
                        amount(one.unwrap_or_default()),
                        amount(other.unwrap_or_default())
                    ),
                })
            };
            let memory = match row.resident {
                Some(bytes) => format!("{}/{}", amount(bytes as f64), amount(row.given as f64)),
                None => amount(row.given as f64),
            };
            let mark = if row.pending > 0 { "*" } else { "" };
            Row::new(vec![
                Cell::from(format!("{}{mark}", row.name)),
                Cell::from(row.state.word()).style(state),
                percent(row.cpu),
                percent(row.delay),
                right(memory),
                two(row.read, row.written),
                right(row.latency.map_or_else(none, |s| format!("{:.1}ms", s * 1e3))),
                two(row.received, row.sent),
                percent(row.pressure),
            ])
        });
        let right = |text: &'static str| Cell::from(Line::from(text).right_aligned());
        let head = Row::new(vec![
            Cell::from("NAME"),
            Cell::from("STATE"),
            right("CPU%"),
            right("WAIT%"),
            right("MEM"),
            right("DISK r/w"),
            right("LAT"),
            right("NET in/out"),
            right("PSI%"),
        ])
        .style(Style::new().add_modifier(Modifier::BOLD));
        let widths = [
            Constraint::Min(8),
            Constraint::Length(8),
            Constraint::Length(5),
            Constraint::Length(5),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(7),
            Constraint::Length(11),
            Constraint::Length(4),
        ];
        let table = Table::new(rows, widths)
            .header(head)
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        let mut state = TableState::new().with_selected(self.position());
        frame.render_stateful_widget(table, area, &mut state);
    }
}

fn none() -> String {
    "-".to_owned()
}
