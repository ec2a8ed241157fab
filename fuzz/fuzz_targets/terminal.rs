//! Looks for bytes that break `checks/terminal.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::terminal::check(bytes));
