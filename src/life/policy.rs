//! The keys of the VM file that the machine uses.

/// The keys of the VM file that the machine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The time limit of a clean shutdown.
    pub shutdown_timeout: std::time::Duration,
    /// The reaction to a panic of the guest's kernel.
    pub on_panic: OnPanic,
    /// The condition of readiness.
    pub ready: Ready,
    /// The reaction to a guest that does not become ready.
    pub ready_failure: ReadyFailure,
}

/// The condition of readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The vCPUs run.
    Running,
    /// A condition inside the guest, with its time limit.
    Within(std::time::Duration),
}

/// The reaction to a guest that does not become ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyFailure {
    /// The VM counts as up.
    Continue,
    /// The guest is shut down, and the run fails.
    Fail,
}

/// The reaction to a panic of the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// The run fails, so that the service manager restarts it.
    Restart,
    /// The run ends without a failure.
    Stop,
    /// The guest stays paused.
    Pause,
}
