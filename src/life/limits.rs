//! The times of the machine.

use std::time::Duration;

/// The interval between two presses of the power button. A press is lost while a Linux guest boots
/// and no process has opened the button's device; further presses do not disturb a shutdown.
pub const PRESS_EVERY: Duration = Duration::from_secs(5);

/// How long QEMU may take to flush its disks and exit after `quit`, before SIGKILL.
pub const QUIT_GRACE: Duration = Duration::from_secs(10);

/// How long QEMU may take to exit after SIGKILL. A process that the kernel blocks on storage takes
/// longer: no signal ends it.
pub const KILL_GRACE: Duration = Duration::from_secs(10);

/// How long the cancellation of a start may take before the run ends without it.
pub const START_CANCEL_GRACE: Duration = Duration::from_secs(5);

/// How long a stop waits for an adoption, which has its own limits: without its supervisor, QEMU
/// would keep running.
pub const ADOPTION_GRACE: Duration = Duration::from_secs(60);
