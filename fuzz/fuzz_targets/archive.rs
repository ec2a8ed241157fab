//! Looks for bytes that break `checks/archive.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::archive::check(bytes));
