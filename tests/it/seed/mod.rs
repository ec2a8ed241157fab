//! Seeds and cloud-init.

mod debian;
mod nocloud;
