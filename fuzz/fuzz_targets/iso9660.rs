//! Looks for bytes that break `checks/iso9660.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::iso9660::check(bytes));
