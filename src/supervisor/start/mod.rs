//! From a VM file to a running QEMU.

pub(crate) mod admission;
pub mod adopt;
pub(crate) mod begin;
pub(crate) mod forwards;
#[allow(unsafe_code)]
pub mod isolate;
pub mod launch;
pub mod memory_budget;
pub mod prepare;
pub mod start_turns;
