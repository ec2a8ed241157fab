//! Looks for bytes that break `checks/image_head.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::image_head::check(bytes));
