//! Looks for bytes that break `checks/kept.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::kept::check(bytes));
