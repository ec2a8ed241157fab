//! Looks for bytes that break `checks/sums.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::sums::check(bytes));
