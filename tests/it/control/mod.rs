//! The control socket.

mod answers;
mod console;
mod metrics;
mod screen;
mod varlink;
