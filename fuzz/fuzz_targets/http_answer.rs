//! Looks for bytes that break `checks/http_answer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::http_answer::check(bytes));
