//! Networks of guests.

mod anti_spoof;
mod bridge;
mod network;
mod network_broker;
mod reach;
mod taps;
