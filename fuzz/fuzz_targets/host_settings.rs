//! Looks for bytes that break `checks/host_settings.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::host_settings::check(bytes));
