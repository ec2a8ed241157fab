//! The terminal of `qvm top`: raw mode and the alternate screen, restored afterward. No write here
//! waits for a terminal that does not accept output, except where the caller can cancel it.

use std::{
    cell::RefCell,
    io::{self, Write},
    rc::Rc,
    time::Duration,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::event::{self, Event},
};

use super::model::Top;
use crate::sys::terminal::{self, InputState, Output, Raw};

/// Enters and leaves the alternate screen; the cursor is restored.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[2J";
const LEAVE: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// Drawn output that is not yet written.
#[derive(Debug, Clone, Default)]
struct Drawn(Rc<RefCell<Vec<u8>>>);

impl Write for Drawn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The terminal.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Drawn>>,
    drawn: Drawn,
    out: Output,
    raw: Option<Raw>,
}

impl Screen {
    /// Enters the alternate screen.
    ///
    /// # Errors
    /// The terminal does not support it.
    pub(crate) fn enter() -> io::Result<Self> {
        let drawn = Drawn::default();
        let terminal = Terminal::new(CrosstermBackend::new(drawn.clone()))?;
        let mut screen = Self { terminal, drawn, out: Output::stdout(), raw: None };
        screen.resume()?;
        Ok(screen)
    }

    /// Enters the alternate screen again; the next draw is complete.
    ///
    /// # Errors
    /// As of [`Self::enter`].
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.raw = Raw::enter()?;
        self.terminal = Terminal::new(CrosstermBackend::new(self.drawn.clone()))?;
        self.drawn.write_all(ENTER)
    }

    /// Leaves the alternate screen for a while.
    pub(crate) async fn pause(&mut self) {
        let bytes = self.taken(LEAVE);
        let out = std::mem::replace(&mut self.out, Output::stdout());
        out.finish_with(&bytes).await;
        self.raw = None;
    }

    /// Leaves the alternate screen.
    pub(crate) async fn leave(mut self) {
        self.pause().await;
    }

    /// Draws, and waits until earlier output is written.
    ///
    /// # Errors
    /// The terminal cannot be written.
    pub(crate) async fn draw(&mut self, top: &Top) -> io::Result<()> {
        self.out.has_room().await?;
        self.terminal.draw(|frame| top.draw(frame))?;
        let bytes = self.taken(&[]);
        self.out.write(bytes).await
    }

    /// Returns key presses and size changes within `limit`; `None` if the terminal is gone.
    ///
    /// # Errors
    /// The terminal cannot be read.
    pub(crate) async fn keys(&mut self, limit: Duration) -> io::Result<Option<Vec<Event>>> {
        let waited = tokio::task::spawn_blocking(move || terminal::wait_for_input(limit)).await;
        if waited.map_err(io::Error::other)?? == InputState::HungUp {
            return Ok(None);
        }
        let mut all = vec![];
        while event::poll(Duration::ZERO)? {
            all.push(event::read()?);
        }
        Ok(Some(all))
    }

    fn taken(&mut self, last: &[u8]) -> Vec<u8> {
        let mut bytes = self.drawn.0.take();
        bytes.extend_from_slice(last);
        bytes
    }
}
