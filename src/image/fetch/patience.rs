//! How much is borne before a download is given up.

use std::time::Duration;

/// How much is borne before a download is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long no byte may come.
    pub silence: Duration,
    /// How often in a row an attempt may fail without getting further than every attempt before it.
    pub attempts: u32,
    /// The pause after the first failure; doubled after each further one, to at most 30 s.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), attempts: 5, pause: Duration::from_secs(1) }
    }
}
