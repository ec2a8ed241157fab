//! Looks for bytes that break `checks/control_reply.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::control_reply::check(bytes));
