//! Whether the host has slept, told by the kernel: nothing wakes us while it does not.
//!
//! A timer of the real-time clock that never fires is cancelled when that clock is set, and when the host resumes (timerfd_create(2),
//! `TFD_TIMER_CANCEL_ON_SET`). Which of the two it was is told by CLOCK_BOOTTIME, which goes on while the host sleeps, where
//! CLOCK_MONOTONIC does not (clock_gettime(2)).

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::{
    io::{Errno, read},
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        clock_gettime, timerfd_create, timerfd_settime,
    },
};
use tokio::io::unix::AsyncFd;

use super::readable_fd::readable;

/// What counts as a sleep: the two clocks are never read at the very same time.
const LEAST: Duration = Duration::from_secs(1);

/// The host's sleeps.
#[derive(Debug)]
pub struct Sleeps {
    timer: AsyncFd<Arc<OwnedFd>>,
    /// How long the host has slept since its boot, as far as it was told.
    asleep: Duration,
}

impl Sleeps {
    /// Begins to listen; needs a runtime.
    ///
    /// # Errors
    /// No more descriptors, or no such timers (Linux before 3.0).
    pub fn begin() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        timerfd_settime(&timer, flags, &never)?;
        let timer = readable(Arc::new(timer))?;
        Ok(Self { timer, asleep: asleep() })
    }

    /// Waits until the host has slept, and tells for how long; `None` when nothing can be told any more.
    pub async fn next(&mut self) -> Option<Duration> {
        loop {
            let mut ready = self.timer.readable().await.ok()?;
            match read(ready.get_inner(), &mut [0; 8]) {
                // The clock is not what it was; or, in some billion years, the timer's time has come.
                Err(Errno::CANCELED) | Ok(_) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    ready.clear_ready();
                    continue;
                }
                Err(_) => return None,
            }
            ready.clear_ready();
            let before = std::mem::replace(&mut self.asleep, asleep());
            if let Some(slept) = slept(before, self.asleep) {
                return Some(slept);
            }
        }
    }
}

/// How long the host has slept in between, where it has, by how long it had slept before and after.
fn slept(before: Duration, after: Duration) -> Option<Duration> {
    after.checked_sub(before).filter(|slept| *slept >= LEAST)
}

/// How long the host has slept since its boot.
fn asleep() -> Duration {
    let at = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order: what passes in between must not be more than there was.
    let awake = at(ClockId::Monotonic);
    at(ClockId::Boottime).saturating_sub(awake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_told_from_a_clock_that_was_set() {
        let ms = Duration::from_millis;
        // Whoever sets the clock moves neither of the two that are compared.
        assert_eq!(slept(ms(5_000), ms(5_000)), None);
        assert_eq!(slept(ms(5_000), ms(5_001)), None);
        assert_eq!(slept(ms(5_001), ms(5_000)), None);
        assert_eq!(slept(ms(0), ms(999)), None);
        assert_eq!(slept(ms(0), ms(1_000)), Some(ms(1_000)));
        assert_eq!(slept(ms(5_000), ms(3_605_000)), Some(ms(3_600_000)));
    }

    /// That it sleeps cannot be had here; that it is asked, and stays silent while nothing happens, can.
    #[tokio::test]
    async fn a_host_that_is_awake_is_silent() {
        let mut sleeps = Sleeps::begin().unwrap();
        assert_eq!(slept(sleeps.asleep, asleep()), None);
        let told = tokio::time::timeout(Duration::from_millis(50), sleeps.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
}
