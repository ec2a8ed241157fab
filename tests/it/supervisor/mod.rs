//! The supervisor of a running QEMU.

mod balloon;
mod exec_stop_post;
mod host_faults;
mod hung_storage;
mod hung_verbs;
mod intention;
mod load;
mod monitor;
mod plug;
mod resources;
mod suspend;
