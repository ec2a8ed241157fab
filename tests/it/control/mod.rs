//! The control socket and what is behind it.

mod answers;
mod console;
mod metrics;
mod screen;
mod varlink;
