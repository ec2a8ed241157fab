//! Snapshots.

mod overlay;
mod place;
mod reflink;
mod refusals;
