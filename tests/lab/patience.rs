//! Waits that end when there is no progress, not after a fixed time: a loaded machine without KVM
//! can be ten times slower than an idle one.

use std::{
    path::Path,
    time::{Duration, Instant},
};

/// The time without progress after which a wait fails.
const STILL: Duration = Duration::from_secs(300);
/// The time after which a wait fails even with progress.
const TOTAL: Duration = Duration::from_secs(1200);
/// The minimum time between two checks of a condition.
const POLL: Duration = Duration::from_millis(10);

/// Sleeps until the next check of a condition whose last check took `checked`, `waited` after the
/// first one. A check that starts a program must not take the CPU that the guest needs: in a long
/// wait such checks become rarer.
pub(crate) fn rest(checked: Duration, waited: Duration) {
    let rarer = (waited / 20).min(checked * 20);
    std::thread::sleep((checked * 2).max(POLL).max(rarer));
}

/// The reason of a failed wait.
#[derive(Debug)]
pub(crate) struct Standstill {
    /// Since the beginning of the wait.
    pub(crate) after: Duration,
    /// Since the last progress.
    pub(crate) still: Duration,
}

/// Waits until `done`, as long as `progress` changes.
pub(crate) fn while_progress<T: PartialEq>(
    mut progress: impl FnMut() -> T,
    mut done: impl FnMut() -> bool,
) -> Result<(), Standstill> {
    let began = Instant::now();
    let (mut last, mut moved) = (progress(), began);
    loop {
        let asked = Instant::now();
        if done() {
            return Ok(());
        }
        let asked = asked.elapsed();
        let now = progress();
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        let (after, still) = (began.elapsed(), moved.elapsed());
        if after >= TOTAL || still >= STILL {
            return Err(Standstill { after, still });
        }
        rest(asked, after);
    }
}

/// The progress of a guest: the inode and the length of its console log, which is replaced when it
/// is full.
pub(crate) fn console_length(log: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(log).ok().map(|log| (log.ino(), log.len()))
}
