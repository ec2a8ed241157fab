//! All VMs of the host: inventory, start, stop, usage and metrics.

pub mod addresses;
pub mod cpu_share;
pub(crate) mod entry;
pub mod force_off;
pub mod inventory;
pub mod lock_holder;
pub mod metrics;
pub mod orphans;
pub mod rates;
pub mod start;
mod start_error;
pub(crate) mod start_log;
pub mod stop;
pub mod usage;
