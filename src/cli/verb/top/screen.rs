//! The terminal of `qvm top`: raw, on its alternate screen, and as it was before afterwards. Nothing here waits for a terminal that does
//! not take its output, but where the caller may stop waiting.

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

/// The alternate screen; and back, with a cursor.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[2J";
const LEAVE: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// What was drawn and not yet written.
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
    /// Takes the terminal.
    ///
    /// # Errors
    /// It does not let itself be taken.
    pub(crate) fn enter() -> io::Result<Self> {
        let drawn = Drawn::default();
        let terminal = Terminal::new(CrosstermBackend::new(drawn.clone()))?;
        let mut screen = Self { terminal, drawn, out: Output::stdout(), raw: None };
        screen.resume()?;
        Ok(screen)
    }

    /// Takes the terminal again, and draws all of it the next time.
    ///
    /// # Errors
    /// As of [`Self::enter`].
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.raw = Raw::enter()?;
        self.terminal = Terminal::new(CrosstermBackend::new(self.drawn.clone()))?;
        self.drawn.write_all(ENTER)
    }

    /// Gives the terminal back for a while.
    pub(crate) async fn pause(&mut self) {
        let bytes = self.taken(LEAVE);
        let out = std::mem::replace(&mut self.out, Output::stdout());
        out.finish_with(&bytes).await;
        self.raw = None;
    }

    /// Gives the terminal back.
    pub(crate) async fn leave(mut self) {
        self.pause().await;
    }

    /// Draws, and waits until the terminal has room for what was drawn before.
    ///
    /// # Errors
    /// The terminal does not take it.
    pub(crate) async fn draw(&mut self, top: &Top) -> io::Result<()> {
        self.out.has_room().await?;
        self.terminal.draw(|frame| top.draw(frame))?;
        let bytes = self.taken(&[]);
        self.out.write(bytes).await
    }

    /// The keys that are pressed within `limit`, and sizes that the terminal takes; `None` where the terminal is gone.
    ///
    /// # Errors
    /// It cannot be read.
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
