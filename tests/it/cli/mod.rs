//! The command line.

mod begin;
mod exit_codes;
mod operate;
mod readme;
mod top;
mod vanish;
