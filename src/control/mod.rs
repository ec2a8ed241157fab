//! The varlink interface: types, server, client.

pub mod change;
pub mod client;
mod crowd;
mod fault;
pub mod grant;
mod guest;
mod interface;
pub mod isolation;
mod method;
pub mod server;
mod socket;
mod state;
pub mod types;
