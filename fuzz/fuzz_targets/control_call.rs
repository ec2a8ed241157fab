//! Looks for bytes that break `checks/control_call.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::control_call::check(bytes));
