//! Looks for bytes that break `checks/packed.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::packed::check(bytes));
