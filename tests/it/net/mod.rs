//! Networks of guests.

mod anti_spoof;
mod bridge;
mod lend;
mod network;
mod reach;
mod taps;
