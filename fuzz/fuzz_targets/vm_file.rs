//! Looks for bytes that break `checks/vm_file.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::vm_file::check(bytes));
