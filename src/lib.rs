//! qvm: a direct QEMU process supervisor.
//!
//! The house has floors, and a floor imports only from floors below it; `tests/house.rs` holds the tree to it.
//!
//! | floor | module | what it holds |
//! |---|---|---|
//! | 0 | [`value`] | words that cannot be wrong |
//! | 1 | [`spec`] | the VM file, typed |
//! | 2 | [`plan`] | what will be done, as data; pure |
//! | 2 | [`life`] | the state machine of one VM; std only |
//! | 3 | [`host`] | everything that touches the machine |
//! | 3 | [`control`] | the varlink interface: types, server, client |
//! | 3 | [`table`] | tables for a terminal |
//! | 4 | [`run`] | one supervisor: prepare, launch, adopt, supervise |
//! | 5 | [`verb`] | one verb of the command line, one file |

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod cli;
pub mod control;
pub mod disk;
pub mod doctor;
pub mod fleet;
pub mod guest;
pub mod image;
pub mod life;
pub mod machine;
pub mod net;
pub mod sandbox;
pub mod seed;
pub mod spec;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod systemd;
pub mod transfer;
pub mod value;

