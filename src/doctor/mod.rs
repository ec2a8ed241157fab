//! `qvm doctor`: probes of the host, and rules that turn them into findings.

pub mod collect;
pub mod probe;
pub mod rules;
