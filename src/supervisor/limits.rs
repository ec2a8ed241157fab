//! The time limits that several parts of the supervisor share.

use std::time::Duration;

/// The time limit of one QMP command.
pub(crate) const QMP_LIMIT: Duration = Duration::from_secs(10);
/// The time limit of a query whose late reply is still useful.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The time limit of a call to the guest agent. Without an agent no reply arrives.
pub(crate) const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// How long a reply waits until the confirmed change is written to the run record.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// The time that the service manager is asked to wait in addition to the stop ladder.
pub(crate) const STOP_SLACK: Duration = Duration::from_secs(10);
/// How far the progress of a start extends the timeout of the service manager.
pub(crate) const START_STEP: Duration = Duration::from_secs(90);
/// The number of console lines reported with a failure.
pub(crate) const LAST_WORDS: usize = 10;
/// The delay from a launch or a request to the return of unused memory to the kernel.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(5);
