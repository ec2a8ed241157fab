//! Looks for bytes that break `checks/qmp_session.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::qmp_session::check(bytes));
