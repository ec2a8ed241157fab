//! qvm: a direct QEMU process supervisor.
//!
//! Top-level folders are features. A folder imports only from folders above it in this table;
//! a test reads every `use` and holds the tree to it.
//!
//! | module | contents |
//! |---|---|
//! | [`value`] | types whose values are valid by construction |
//! | [`sys`] | system calls and processes |
//! | [`life`] | the lifecycle of one VM as a state machine; std only |
//! | [`spec`] | the VM file and the host settings, typed |
//! | [`control`] | the varlink interface: types, server, client, authorization |
//! | [`store`] | every path and every record that qvm keeps |
//! | [`machine`] | from a VM file to a QEMU command line |
//! | [`systemd`] | notifications, units, the journal, systemd-machined |
//! | [`guest`] | commands and files in a guest, by its agent |
//! | [`seed`] | the NoCloud seed image |
//! | [`net`] | taps, anti-spoofing, the network broker |
//! | [`sandbox`] | UID, namespaces, Landlock, seccomp, and the spawn of QEMU |
//! | [`image`] | image cache and downloads |
//! | [`disk`] | the disks of VMs |
//! | [`snapshot`] | snapshots of the disks of VMs |
//! | [`supervisor`] | one supervisor: prepare, launch or adopt, supervise |
//! | [`transfer`] | export, import, clone, rename |
//! | [`fleet`] | all VMs of the host |
//! | [`doctor`] | checks of the host and of all VM files |
//! | [`cli`] | arguments, tables, one file a verb |

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
pub mod snapshot;
pub mod spec;
pub mod store;
pub mod supervisor;
pub mod sys;
pub mod systemd;
pub mod transfer;
pub mod value;
