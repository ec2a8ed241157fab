//! Looks for bytes that break `checks/host_text.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::host_text::check(bytes));
