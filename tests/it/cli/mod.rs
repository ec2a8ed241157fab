//! The command line.

mod begin;
mod exit_codes;
mod fault_codes;
mod operate;
mod readme;
mod top;
mod vanish;
