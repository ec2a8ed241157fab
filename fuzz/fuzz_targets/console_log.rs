//! Looks for bytes that break `checks/console_log.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::console_log::check(bytes));
