//! Timeouts and retries of a download.

use std::time::Duration;

/// Timeouts and retries of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The timeout without data.
    pub silence: Duration,
    /// The maximum number of consecutive attempts without progress.
    pub attempts: u32,
    /// The pause after the first failure; doubled after each further one, up to 30 s.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), attempts: 5, pause: Duration::from_secs(1) }
    }
}
