//! Looks for bytes that break `checks/qmp_line.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::qmp_line::check(bytes));
