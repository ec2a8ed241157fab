//! Floor 3: the varlink interface: types, server, client.

pub mod client;
mod crowd;
mod fault;
pub mod grant;
mod guest;
mod interface;
mod method;
pub mod server;
mod socket;
mod state;
pub mod types;

