//! What a supervisor is for.

/// What a supervisor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It runs the VM.
    Run,
    /// It adopts a QEMU process that is running, and shuts its guest down. It starts none.
    ShutDown,
}
