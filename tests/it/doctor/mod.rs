//! `qvm doctor`.

mod report;
