//! What a supervisor does while its QEMU runs.

mod balloon;
mod host_faults;
mod hung_storage;
mod load;
mod monitor;
mod plug;
mod reap;
mod resources;
mod suspend;
