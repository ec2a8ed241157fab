//! The descriptors that QEMU inherits, by number.

/// The listening QMP socket.
pub const QMP: i32 = 3;
/// The listening socket of the guest agent's channel.
pub const AGENT: i32 = 4;
/// The listening socket of the serial console.
pub const SERIAL: i32 = 5;

/// The guest's saved state, at QEMU's own bytes.
pub const STATE: i32 = 6;

/// The liveness lock in the runtime directory.
pub const RUNTIME_LOCK: i32 = 7;
/// The liveness lock beside the disks.
pub const STATE_LOCK: i32 = 8;

/// The tap of the `index`th NIC.
pub const fn tap(index: usize) -> i32 {
    10 + 2 * index as i32
}

/// The vhost-net device of the `index`th NIC.
pub const fn vhost(index: usize) -> i32 {
    11 + 2 * index as i32
}
