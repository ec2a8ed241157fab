//! Changes a running QEMU to the new overlays of a snapshot, or finds out whether an earlier
//! supervisor did.

use std::path::Path;

use tracing::{info, warn};

use crate::{
    control::types::Refusal,
    image::qemu_img::QemuImg,
    machine::{
        device::{format_node, node, overlay_file_node, overlay_node, overlay_nodes, overlay_set},
        fdset::{FIRST, PassedFile},
    },
    snapshot::live::{self, Interrupted, LiveCreate, NewOverlay, OverlayUse},
    spec::Disk,
    store::layout::VmPaths,
    supervisor::{limits::QMP_LIMIT, refusal::qmp_refusal, start::isolate},
    value::{ErrorCode, Explain, Label, SnapshotName, chain},
};

/// Returns the refusal for an error, with its hint.
pub(super) fn refusal_of(error: &(dyn Explain + 'static)) -> Refusal {
    let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
    let text = format!("{}{hint}", chain(error));
    match error.is_host_fault() {
        true => Refusal::HostFault(text),
        false => Refusal::Failed(error.code(), text),
    }
}

/// A new overlay that QEMU has opened.
struct OpenedOverlay {
    disk: Label,
    set: i32,
    /// The node below it.
    top: String,
}

/// Changes QEMU to the new files. On an error everything is undone, unless it is unknown whether
/// QEMU has changed: that is settled later.
pub(super) async fn switch(
    client: &qmp::Client,
    mut live: Box<LiveCreate>,
    disks: &[Disk],
    uid: Option<u32>,
    state: &Path,
) -> Result<Box<LiveCreate>, Refusal> {
    let overlays = live.overlays();
    let mut opened = vec![];
    let result = async {
        for overlay in &overlays {
            open(client, overlay, disks, uid, state, &mut opened).await?;
        }
        live.switch().map_err(|error| refusal_of(&error))?;
        if opened.is_empty() {
            return Ok(());
        }
        let pair = |one: &OpenedOverlay| (one.top.clone(), overlay_node(&one.disk, one.set));
        let pairs: Vec<(String, String)> = opened.iter().map(pair).collect();
        let done = client.put_overlays(&pairs, QMP_LIMIT).await;
        done.map_err(|error| qmp_refusal("change to the new files", &error))
    };
    match result.await {
        Ok(()) => Ok(live),
        Err(refusal @ Refusal::Unconfirmed(_)) => Err(refusal),
        Err(refusal) => {
            if !close(client, &opened).await {
                let why = format!("{refusal}; QEMU did not confirm that it has not changed");
                return Err(Refusal::Unconfirmed(why));
            }
            if let Err(error) = live.revert() {
                warn!("cannot undo the snapshot: {}", chain(&error));
            }
            Err(refusal)
        }
    }
}

/// Opens a new overlay in QEMU.
async fn open(
    client: &qmp::Client,
    overlay: &NewOverlay,
    disks: &[Disk],
    uid: Option<u32>,
    state: &Path,
    opened: &mut Vec<OpenedOverlay>,
) -> Result<(), Refusal> {
    let failed = |error: qmp::Error| qmp_refusal("open the new file of a disk", &error);
    let Some(disk) = disks.iter().find(|disk| disk.name == overlay.disk) else {
        let why = format!("the VM has no disk `{}`", overlay.disk);
        return Err(Refusal::Failed(ErrorCode::SnapshotRefused, why));
    };
    let names = client.node_names(QMP_LIMIT).await.map_err(failed)?;
    let Some(top) = top_node(&disk.name, &names) else {
        let why = "the VM was started by an earlier version of qvm; restart it first";
        return Err(Refusal::Failed(ErrorCode::SnapshotRefused, why.to_owned()));
    };
    let sets = client.fd_sets(QMP_LIMIT).await.map_err(failed)?;
    let set = sets.iter().map(|(set, _)| set + 1).fold(FIRST, i32::max);
    let (access, nodes) = overlay_nodes(disk, set);
    let path = overlay.file.clone();
    let files = [PassedFile { set, path, access, node: node(&disk.name) }];
    isolate::give_to_user(&files, state, uid);
    let fds = isolate::open(&files).map_err(|error| refusal_of(&error))?;
    let opaque = opaque(&disk.name, &overlay.snapshot);
    opened.push(OpenedOverlay { disk: disk.name.clone(), set, top });
    for (fd, set) in fds {
        client.add_fd(set, &opaque, fd, QMP_LIMIT).await.map_err(failed)?;
    }
    for node in nodes {
        client.add_node(node, QMP_LIMIT).await.map_err(failed)?;
    }
    Ok(())
}

/// The uppermost node of a disk's formats.
fn top_node(disk: &Label, names: &[String]) -> Option<String> {
    let sets = names.iter().filter_map(|name| overlay_set(disk, name));
    let first = format_node(disk);
    match sets.max() {
        Some(set) => Some(overlay_node(disk, set)),
        None => names.contains(&first).then_some(first),
    }
}

/// What QEMU keeps with the descriptor of an overlay: its owner, as of all files of a disk, and the
/// snapshot.
fn opaque(disk: &Label, snapshot: &SnapshotName) -> String {
    format!("{} {snapshot}", node(disk))
}

/// Closes overlays that QEMU has not changed to. Returns false if this is unknown.
async fn close(client: &qmp::Client, opened: &[OpenedOverlay]) -> bool {
    let Ok(names) = client.node_names(QMP_LIMIT).await else { return false };
    for one in opened {
        let overlay = overlay_node(&one.disk, one.set);
        if names.contains(&overlay) && client.remove_node(&overlay, QMP_LIMIT).await.is_err() {
            return false;
        }
        let _ = client.remove_node(&overlay_file_node(&one.disk, one.set), QMP_LIMIT).await;
        let _ = client.remove_fds(one.set, QMP_LIMIT).await;
    }
    true
}

/// Completes or undoes an interrupted snapshot, as QEMU has changed to its files or not.
pub(super) async fn settle(
    client: &qmp::Client,
    paths: &VmPaths,
    qemu_img: &QemuImg,
) -> Result<(), Refusal> {
    let found = live::interrupted(paths, qemu_img).map_err(|error| refusal_of(&error))?;
    let Some(Interrupted { snapshot, disks }) = found else { return Ok(()) };
    let failed = |error: qmp::Error| qmp_refusal("settle an interrupted snapshot", &error);
    let sets = client.fd_sets(QMP_LIMIT).await.map_err(failed)?;
    let names = client.node_names(QMP_LIMIT).await.map_err(failed)?;
    let mut uses = vec![];
    for disk in &disks {
        let opaque = opaque(disk, &snapshot);
        let set = sets.iter().find(|(_, text)| *text == opaque).map(|(set, _)| *set);
        let overlay = set.map(|set| overlay_node(disk, set));
        uses.push(match overlay.filter(|overlay| names.contains(overlay)) {
            None => OverlayUse::Unused,
            // QEMU removes only a node that nothing uses.
            Some(overlay) => match client.remove_node(&overlay, QMP_LIMIT).await {
                Ok(()) => OverlayUse::Unused,
                Err(qmp::Error::Refused { .. }) => OverlayUse::Attached,
                Err(error) => return Err(failed(error)),
            },
        });
        if let (Some(set), Some(OverlayUse::Unused)) = (set, uses.last()) {
            let _ = client.remove_node(&overlay_file_node(disk, set), QMP_LIMIT).await;
            let _ = client.remove_fds(set, QMP_LIMIT).await;
        }
    }
    // Reflinks concern QEMU only as files that it reads.
    let uses_all = match uses.first() {
        None => OverlayUse::Attached,
        Some(first) if uses.iter().all(|other| other == first) => *first,
        Some(_) => {
            let why = "QEMU uses the new files of some disks only";
            return Err(Refusal::HostFault(why.to_owned()));
        }
    };
    live::resolve(paths, qemu_img, uses_all).map_err(|error| refusal_of(&error))?;
    let outcome = match uses_all {
        OverlayUse::Attached => "completed",
        OverlayUse::Unused => "undone",
    };
    info!("the interrupted snapshot {snapshot} was {outcome}");
    Ok(())
}
