//! Looks for bytes that break `checks/firmware.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::firmware::check(bytes));
