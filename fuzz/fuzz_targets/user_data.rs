//! Looks for bytes that break `checks/user_data.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::user_data::check(bytes));
