//! Tests by feature, in one program: `cargo test --test it FEATURE::`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "../http/mod.rs"]
mod http;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../netns/mod.rs"]
mod netns;
#[path = "../wire/mod.rs"]
mod wire;

mod cli;
mod control;
mod disk;
mod doctor;
mod fleet;
mod guest;
mod image;
mod machine;
mod net;
mod package;
mod sandbox;
mod seed;
mod snapshot;
mod spec;
mod start;
mod supervisor;
mod transfer;
