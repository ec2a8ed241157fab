//! Taking over a QEMU that an earlier supervisor left running.

use std::{sync::Arc, time::Duration};

use tokio::net::UnixStream;

use super::launch::{Error, Qemu, restored};
use crate::{
    disk,
    life::Guest,
    store::{record::Record, saved_state},
};
use crate::{
    store::layout::VmPaths,
    sys::{file, pidfd::Process},
    value::chain,
};

/// How long an adopted QEMU may take until it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long one that hangs up may take to be gone.
const GOES_WITHIN: Duration = Duration::from_secs(2);

/// Removes what an earlier supervisor was writing when it died: a half-saved state has the size of the guest's memory, and QEMU may run
/// for months. That it stays does no harm.
fn remove_left_overs(paths: &VmPaths) {
    if let Err(error) = disk::remove_left_overs(paths) {
        tracing::warn!("a temporary file is left: {}", chain(&error));
    }
}

/// Connects to it. It is never killed here, whatever it does: it may hold a guest that only hangs for a while.
///
/// # Errors
/// It lives but does not answer.
pub async fn adopt(process: Arc<Process>, record: Record, paths: &VmPaths) -> Result<Qemu, Error> {
    let pid = record.pid;
    remove_left_overs(paths);
    match take_over(process.clone(), record, paths).await {
        Err(Error::Monitor(source)) => {
            // A QEMU process that closes the connection may be exiting, as its guest has shut down.
            let _ = tokio::time::timeout(GOES_WITHIN, process.wait()).await;
            Err(Error::Silent { pid, source })
        }
        done => done,
    }
}

async fn take_over(
    process: Arc<Process>,
    mut record: Record,
    paths: &VmPaths,
) -> Result<Qemu, Error> {
    let session = qmp::connect(&paths.qmp_socket(), ANSWER_LIMIT).await?;
    for socket in [paths.qmp_socket(), paths.agent_socket(), paths.serial_socket()] {
        // An earlier qvm left them open to the group, past the question who may do what.
        let _ = file::set_mode(&socket, 0o600);
    }
    let listens = session.client.listens_for_viewers(ANSWER_LIMIT).await?;
    let serial = UnixStream::connect(paths.serial_socket()).await.map_err(Error::Serial)?;
    if let Some(held) = record.restoring {
        restored(&session.client, paths, held).await?;
    } else {
        // As long as this QEMU lives, a state that was saved of it is of an earlier time than its disks.
        if let Err(error) = saved_state::remove(&paths.saved()) {
            tracing::warn!("a saved state is left that must not be used: {}", chain(&error));
        }
    }
    if let Some(held) = record.saving {
        // Its bytes went to the supervisor that is gone.
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
        // An earlier supervisor died between its last two steps.
        "prelaunch" => {
            session.client.cont(ANSWER_LIMIT).await?;
            Guest::Running
        }
        "running" => Guest::Running,
        _ => Guest::Paused,
    };
    Ok(Qemu {
        process,
        record,
        client: session.client,
        agent: qmp::agent::Agent::new(paths.agent_socket()),
        events: Some(session.events),
        serial: Some(serial),
        door: None,
        serving: None,
        unserved: None,
        tap_notes: vec![],
        listens,
        found,
        adopted: true,
    })
}
