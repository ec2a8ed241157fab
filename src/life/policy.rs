//! What the machine needs of the VM file.

/// What the machine needs of the VM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long a clean shutdown may take.
    pub shutdown_timeout: std::time::Duration,
    /// What a panic leads to.
    pub on_panic: OnPanic,
    /// What makes it ready.
    pub ready: Ready,
    /// What a guest that does not get ready leads to.
    pub ready_failure: ReadyFailure,
}

/// What makes a VM ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// That its vCPUs run.
    Running,
    /// Something in the guest, which may take so long.
    Within(std::time::Duration),
}

/// What a guest that does not get ready leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyFailure {
    /// It counts as up all the same.
    Continue,
    /// It is shut down, and the run fails.
    Fail,
}

/// What a panic of the guest's kernel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPanic {
    /// The run fails, so that the service manager restarts it.
    Restart,
    /// The run ends well.
    Stop,
    /// The guest stays as it is, paused.
    Pause,
}
