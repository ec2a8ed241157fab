//! Reports suspends of the host, without polling.
//!
//! A timer of the real-time clock that never expires is canceled when that clock is set and when
//! the host resumes (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`). CLOCK_BOOTTIME distinguishes
//! the two: unlike CLOCK_MONOTONIC it advances during a suspend (clock_gettime(2)).

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

/// The minimum duration of a suspend: the two clocks are not read at the same instant.
const LEAST: Duration = Duration::from_secs(1);

/// A watch for suspends of the host.
#[derive(Debug)]
pub struct SuspendWatch {
    timer: AsyncFd<Arc<OwnedFd>>,
    /// The time spent suspended since boot, as reported so far.
    asleep: Duration,
}

impl SuspendWatch {
    /// Starts watching; requires a runtime.
    ///
    /// # Errors
    /// No free descriptor, or no such timers (Linux before 3.0).
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

    /// Waits for the next resume and returns the duration of the suspend; `None` if no more can be
    /// reported.
    pub async fn next(&mut self) -> Option<Duration> {
        loop {
            let mut ready = self.timer.readable().await.ok()?;
            match read(ready.get_inner(), &mut [0; 8]) {
                // The clock was changed, or the timer expired in some billion years.
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

/// Returns the duration of a suspend between two readings of the total, if there was one.
fn slept(before: Duration, after: Duration) -> Option<Duration> {
    after.checked_sub(before).filter(|slept| *slept >= LEAST)
}

/// Returns the time spent suspended since boot.
fn asleep() -> Duration {
    let at = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order, so that the time between the two calls does not count as suspended.
    let awake = at(ClockId::Monotonic);
    at(ClockId::Boottime).saturating_sub(awake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspend_differs_from_a_clock_change() {
        let ms = Duration::from_millis;
        // Setting the clock changes neither of the two compared clocks.
        assert_eq!(slept(ms(5_000), ms(5_000)), None);
        assert_eq!(slept(ms(5_000), ms(5_001)), None);
        assert_eq!(slept(ms(5_001), ms(5_000)), None);
        assert_eq!(slept(ms(0), ms(999)), None);
        assert_eq!(slept(ms(0), ms(1_000)), Some(ms(1_000)));
        assert_eq!(slept(ms(5_000), ms(3_605_000)), Some(ms(3_600_000)));
    }

    /// A test cannot suspend the host; it can only check that nothing is reported without a
    /// suspend.
    #[tokio::test]
    async fn nothing_is_reported_without_suspend() {
        let mut sleeps = SuspendWatch::begin().unwrap();
        assert_eq!(slept(sleeps.asleep, asleep()), None);
        let told = tokio::time::timeout(Duration::from_millis(50), sleeps.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
}
