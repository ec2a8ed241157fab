//! Looks for bytes that break `checks/agent_reply.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qvm_fuzz::agent_reply::check(bytes));
