//! Looks for bytes that break `checks/image_fetch.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::image_fetch::check(bytes));
