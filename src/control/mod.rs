//! The varlink interfaces of a supervisor: types, server, client.

pub mod authorizer;
pub mod change;
pub mod client;
mod client_error;
mod connection_limit;
mod disk_limit;
mod guest;
pub mod handle;
mod interface;
pub mod isolation;
mod method;
pub mod server;
mod socket;
mod state;
mod status;
pub mod types;
mod varlink_error;
