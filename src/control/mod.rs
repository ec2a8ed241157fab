//! Floor 3: the varlink interface: types, server, client.

pub mod client;
pub mod types;
