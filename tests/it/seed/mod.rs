//! Seeds, and cloud-init with them.

mod debian;
mod nocloud;
