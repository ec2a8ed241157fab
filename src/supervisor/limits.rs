//! The time limits that several parts of the supervisor share.

use std::time::Duration;

/// How long one QMP command may take before QEMU counts as not answering.
pub(crate) const QMP_LIMIT: Duration = Duration::from_secs(10);
/// How long a question waits whose late answer is still of use.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a call to the guest agent may take. Where no agent runs, nothing ever answers.
pub(crate) const AGENT_LIMIT: Duration = Duration::from_secs(2);
/// How long an answer waits until the change that it confirms is written to the run record.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// How much longer than the stop ladder the service manager is asked to wait.
pub(crate) const STOP_SLACK: Duration = Duration::from_secs(10);
/// How far the progress of a start extends the service manager's timeout.
pub(crate) const START_STEP: Duration = Duration::from_secs(90);
/// How many lines of the console are reported with a failure.
pub(crate) const LAST_WORDS: usize = 10;
/// How long after a launch or a request unused memory is returned to the kernel.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(5);
