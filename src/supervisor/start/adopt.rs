//! Adoption: connecting to a QEMU process that an earlier supervisor started.

use std::{sync::Arc, time::Duration};

use tokio::net::UnixStream;

use super::launch::{Error, LaunchedQemu, finish_restore};
use crate::{
    disk,
    life::Guest,
    store::{intention::RecordedIntention, record::Record, saved_state},
};
use crate::{
    store::layout::VmPaths,
    sys::{file, pidfd::Process},
    value::chain,
};

/// How long an adopted QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long a QEMU process that closed the connection may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// Removes temporary files of the earlier supervisor: a partial saved state has the size of the
/// guest's memory, and QEMU may run for months. A failure is logged.
fn remove_leftovers(paths: &VmPaths) {
    if let Err(error) = disk::remove_leftovers(paths) {
        tracing::warn!("cannot remove temporary files: {}", chain(&error));
    }
}

/// Connects to the process. It is never killed: its guest may only be blocked for some time.
///
/// # Errors
/// It is alive but does not answer.
pub async fn adopt(
    process: Arc<Process>,
    record: Record,
    paths: &VmPaths,
) -> Result<LaunchedQemu, Error> {
    let pid = record.pid;
    remove_leftovers(paths);
    match connect(process.clone(), record, paths).await {
        Err(Error::Monitor(source)) => {
            // The guest may have shut down, so that QEMU is exiting.
            let _ = tokio::time::timeout(EXIT_LIMIT, process.wait()).await;
            Err(Error::Silent { pid, source })
        }
        done => done,
    }
}

async fn connect(
    process: Arc<Process>,
    mut record: Record,
    paths: &VmPaths,
) -> Result<LaunchedQemu, Error> {
    let session = qmp::connect(&paths.qmp_socket(), ANSWER_LIMIT).await?;
    for socket in [paths.qmp_socket(), paths.agent_socket(), paths.serial_socket()] {
        // An earlier qvm made them accessible to the group, without authorization.
        let _ = file::set_mode(&socket, 0o600);
    }
    let listens = session.client.listens_for_viewers(ANSWER_LIMIT).await?;
    let serial = UnixStream::connect(paths.serial_socket()).await.map_err(Error::Serial)?;
    // The guest has not run since its state was saved, and must not run on.
    let is_saved = record.intention.as_ref().is_some_and(RecordedIntention::is_suspended)
        && paths.saved().symlink_metadata().is_ok();
    if !is_saved {
        // Without the saved state, the guest itself must run on.
        record.intention.take_if(|intention| intention.is_suspended());
    }
    if let Some(held) = record.restoring {
        finish_restore(&session.client, paths, held).await?;
    } else if !is_saved {
        // The disks have changed since that state was saved.
        if let Err(error) = saved_state::remove(&paths.saved()) {
            tracing::warn!("cannot remove an outdated saved state: {}", chain(&error));
        }
    }
    if let Some(held) = record.saving
        && !is_saved
    {
        // The stream was received by the dead supervisor.
        let _ = session.client.cancel_migration(ANSWER_LIMIT).await;
        if !held {
            session.client.cont(ANSWER_LIMIT).await?;
        }
    }
    if record.restoring.take().is_some() | record.saving.take().is_some() {
        record.update(paths)?;
    }
    let found = match session.client.query_status(ANSWER_LIMIT).await?.as_str() {
        "shutdown" => Guest::ShutDown,
        "guest-panicked" => Guest::Panicked,
        // The earlier supervisor died before `cont`.
        "prelaunch" => {
            session.client.cont(ANSWER_LIMIT).await?;
            Guest::Running
        }
        "running" => Guest::Running,
        _ => Guest::Paused,
    };
    Ok(LaunchedQemu {
        process,
        record,
        client: session.client,
        agent: qmp::agent::Agent::new(paths.agent_socket()),
        events: session.events,
        serial,
        vnc: None,
        tap_notes: vec![],
        listens,
        found,
        adopted: true,
    })
}

#[cfg(test)]
mod tests;
