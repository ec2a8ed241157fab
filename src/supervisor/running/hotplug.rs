//! Changes a running machine: each change as commands to QEMU or the kernel.

use crate::supervisor::limits::QMP_LIMIT;
use std::{path::PathBuf, time::Duration};

use super::{event::ChangeOutcome, taps};
use crate::{
    machine::{
        device::{self, DISK_PORTS, DiskParts, NIC_PORTS, PciLocation, TapEnds},
        diff::LiveChange,
        fdset::{FIRST, Files, PassedFile},
    },
    net::{
        anti_spoof::filters,
        link::{self, Links},
        tap_spec::tap,
        vhost,
    },
    spec::{Disk, DiskLimits, Link, LinkState, Nic, Vm},
    value::{ErrorCode, Explain, Label, MacAddr, Size, foreign_error::is_unplug_pending},
};
use crate::{
    store::{identity_lock::Waiter, identity_store},
    supervisor::{
        settings::Settings,
        start::{
            forwards, isolate,
            prepare::{self, facts_of},
        },
    },
    sys::progress::Cancel,
};

/// How long to wait until the guest has released a device.
const LET_GO: Duration = Duration::from_secs(10);
/// The interval of queries whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The names of the descriptors of a tap and of vhost-net until the back end uses them.
const TAP: &str = "qvm-tap";
const VHOST: &str = "qvm-vhost";

/// Errors of a change of a running machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot prepare its disk")]
    Prepare(#[from] prepare::Error),
    #[error("no more than {0} can be plugged in while the guest runs")]
    NoPort(usize),
    #[error(transparent)]
    Isolate(#[from] isolate::Error),
    #[error("QEMU refuses")]
    Monitor(#[from] qmp::Error),
    #[error(transparent)]
    Tap(#[from] taps::open::Error),
    #[error(transparent)]
    Forward(#[from] forwards::Error),
    #[error("cannot move its tap")]
    Link(#[from] link::Error),
    #[error("cannot filter the traffic of its tap")]
    Filter(#[from] filters::Error),
    #[error("cannot open /dev/vhost-net")]
    Vhost(#[source] std::io::Error),
    #[error("QEMU has no device for the disk")]
    NoDevice,
    #[error("this QEMU has no network but its taps")]
    ShutOff,
    #[error("canceled")]
    Thread,
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Prepare(error) => Some(error),
            Self::Tap(error) => Some(error),
            Self::Forward(error) => Some(error),
            Self::Filter(error) => Some(error),
            Self::Link(error) => Some(error),
            Self::Isolate(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NoPort(..) => ErrorCode::NoHotplugPort,
            Self::Monitor(error) => error.code(),
            Self::Vhost(..) => ErrorCode::VhostMissing,
            Self::NoDevice => ErrorCode::InternalError,
            Self::ShutOff => ErrorCode::PathUnreachable,
            Self::Thread => ErrorCode::Canceled,
            Self::Prepare(..)
            | Self::Tap(..)
            | Self::Forward(..)
            | Self::Filter(..)
            | Self::Link(..)
            | Self::Isolate(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NoPort(_) | Self::ShutOff => Some("it is added at the next start".into()),
            _ => None,
        }
    }
}

/// A running machine, and the context of its changes.
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) client: qmp::Client,
    /// The VM file with the changes.
    pub(crate) vm: Vm,
    pub(crate) cancel: Cancel,
    /// The UID of QEMU; `None` for the supervisor's.
    pub(crate) uid: Option<u32>,
    /// QEMU is in an empty network namespace.
    pub(crate) shut_off: bool,
}

impl Machine {
    /// Applies one change.
    pub(crate) async fn apply(&self, change: &LiveChange) -> Result<ChangeOutcome, Error> {
        match change {
            LiveChange::SetMemory(size) => self.client.balloon(size.bytes(), QMP_LIMIT).await?,
            LiveChange::AddDisk(disk) => self.add_disk(disk).await?,
            LiveChange::GrowDisk(name, size) => self.grow(name, *size).await?,
            LiveChange::LimitDisk { disk, limits, .. } => self.limit(disk, limits).await?,
            LiveChange::AddNic(nic) => self.add_nic(nic).await?,
            LiveChange::MoveNic(nic) => self.move_to_bridge(nic).await?,
            LiveChange::IsolateNic(nic) => self.move_to_bridge(nic).await?,
            LiveChange::FilterNic(nic) => self.filter(nic).await?,
            LiveChange::SetLink(name, state) => self.link(name, *state).await?,
            LiveChange::RemoveDisk(name) => return self.remove(&device::disk_id(name)).await,
            LiveChange::RemoveNic(name) => return self.remove(&device::nic_id(name)).await,
        }
        Ok(ChangeOutcome::Done)
    }

    /// Runs a blocking function on another thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Settings, &Vm, &Cancel) -> Result<T, prepare::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (settings, vm, cancel) = (self.settings.clone(), self.vm.clone(), self.cancel.clone());
        let done = tokio::task::spawn_blocking(move || work(&settings, &vm, &cancel)).await;
        Ok(done.map_err(|_| Error::Thread)??)
    }

    async fn add_disk(&self, disk: &Disk) -> Result<(), Error> {
        let id = device::disk_id(&disk.name);
        if self.client.devices(QMP_LIMIT).await?.contains(&id) {
            // An earlier supervisor died between this command and its record.
            return Ok(());
        }
        let wanted = disk.clone();
        let file = self.blocking(move |settings, vm, cancel| {
            let qemu: PathBuf = facts_of(settings)?.qemu.binary;
            let say = |text: String| tracing::info!("{text}");
            prepare::disk(settings, &qemu, vm, &wanted, cancel, &say).map(|(file, _)| file)
        });
        let file = file.await?;
        let position = self.vm.disks.iter().position(|other| other.name == disk.name);
        let at_start = position.and_then(|nr| device::disk_places(&self.vm).swap_remove(nr));
        let port = self.free_port(at_start, DISK_PORTS, device::disk_port).await?;
        self.close_nodes(&disk.name).await;
        let sets = self.client.fd_sets(QMP_LIMIT).await?;
        let mut files = Files::from(sets.iter().map(|(set, _)| set + 1).fold(FIRST, i32::max));
        let (DiskParts { objects, nodes }, front) =
            device::disk_behind(disk, &file, &port, &mut files);
        let added = async {
            let files = files.into_all();
            let uid = self.uid;
            isolate::give_to_user(&files, &self.settings.paths().state, uid);
            for (handed, (fd, set)) in files.iter().zip(isolate::open(&files)?) {
                self.client.add_fd(set, &handed.opaque(), fd, QMP_LIMIT).await?;
            }
            for object in objects {
                self.client.add_object(object, QMP_LIMIT).await?;
            }
            for node in nodes {
                self.client.add_node(node, QMP_LIMIT).await?;
            }
            Ok(self.client.add_device(front, QMP_LIMIT).await?)
        };
        let added: Result<(), Error> = added.await;
        if added.is_err() {
            self.close_nodes(&disk.name).await;
        }
        added
    }

    async fn close_nodes(&self, disk: &Label) {
        close_nodes(&self.client, disk).await;
    }

    async fn grow(&self, disk: &Label, size: Size) -> Result<(), Error> {
        let node = device::node(disk);
        // It may already have this size or a larger one: a disk never shrinks.
        let is_less = |now: u64| now < size.bytes();
        if self.client.node_size(&node, QMP_LIMIT).await?.is_none_or(is_less) {
            self.client.resize_node(&node, size.bytes(), QMP_LIMIT).await?;
        }
        Ok(())
    }

    /// Sets all limits of a disk. A disk attached by an earlier qvm has no throttle node: QEMU then
    /// limits the device's access to its node.
    async fn limit(&self, disk: &Label, limits: &DiskLimits) -> Result<(), Error> {
        let group = device::throttle_group(disk);
        if self.client.objects(QMP_LIMIT).await?.contains(&group) {
            let limits = device::limits(limits, true);
            return Ok(self.client.set_throttle_limits(&group, limits, QMP_LIMIT).await?);
        }
        let Some(device) = self.client.device_of_node(&device::node(disk), QMP_LIMIT).await? else {
            return Err(Error::NoDevice);
        };
        let limits = device::limits(limits, true);
        Ok(self.client.throttle_device(&device, &limits, QMP_LIMIT).await?)
    }

    async fn add_nic(&self, nic: &Nic) -> Result<(), Error> {
        let id = device::nic_id(&nic.name);
        if self.client.devices(QMP_LIMIT).await?.contains(&id) {
            return Ok(());
        }
        if self.shut_off && matches!(nic.link, Link::User { .. }) {
            return Err(Error::ShutOff);
        }
        let own = nic.clone();
        let mac = self.blocking(move |settings, vm, cancel| mac_of(settings, vm, &own, cancel));
        let (mac, vhost_net) = mac.await?;
        let position = self.vm.nics.iter().position(|other| other.name == nic.name);
        let at_start = position.map(device::nic_place);
        let port = self.free_port(at_start, NIC_PORTS, device::nic_port).await?;
        forwards::check_forwards(self.settings.shut_off().await, &self.vm, nic)?;
        let net = device::net_id(&nic.name);
        let _ = self.client.remove_net(&net, QMP_LIMIT).await;
        let mut ends = TapEnds { tap: TAP.to_owned(), vhost: None };
        if let Some(tap) = tap(&self.vm.name, nic) {
            let macs = mac.into_iter().map(|mac| (nic.name.clone(), mac)).collect();
            // The keeper of the taps reports blocked bridges.
            let (open, _) = taps::open::open(&self.settings.network, &self.vm, &tap, &macs).await?;
            self.client.pass_fd(TAP, open, QMP_LIMIT).await?;
            if vhost_net {
                let vhost = vhost::open().map_err(Error::Vhost)?;
                self.client.pass_fd(VHOST, vhost, QMP_LIMIT).await?;
                ends.vhost = Some(VHOST.to_owned());
            }
        }
        let (back, front) = device::nic_at(nic, mac, &PciLocation::Port(port), &ends);
        let added = async {
            self.client.add_net(back, QMP_LIMIT).await?;
            self.client.add_device(front, QMP_LIMIT).await?;
            match nic.state {
                LinkState::Up => Ok(()),
                LinkState::Down => self.client.set_link(&id, false, QMP_LIMIT).await,
            }
        };
        if let Err(error) = added.await {
            // Removes the existing ones: the tap must be closed.
            let _ = self.client.remove_net(&net, QMP_LIMIT).await;
            let _ = self.client.close_fd(TAP, QMP_LIMIT).await;
            let _ = self.client.close_fd(VHOST, QMP_LIMIT).await;
            return Err(error.into());
        }
        Ok(())
    }

    async fn move_to_bridge(&self, nic: &Nic) -> Result<(), Error> {
        let Some(tap) = tap(&self.vm.name, nic) else { return Ok(()) };
        let at = self.vm.at(&format!("nic.{}.bridge", nic.name));
        let links = Links::open(self.settings.network.connect().await)?;
        Ok(taps::open::attach(&links, &tap, &at).await.map(drop)?)
    }

    async fn filter(&self, nic: &Nic) -> Result<(), Error> {
        let Some(tap) = tap(&self.vm.name, nic) else { return Ok(()) };
        let own = nic.clone();
        let mac = self.blocking(move |settings, vm, cancel| mac_of(settings, vm, &own, cancel));
        let mac = mac.await?.0;
        let macs = mac.into_iter().map(|mac| (nic.name.clone(), mac)).collect();
        Ok(taps::open::filter(&self.settings.network, &tap, &macs).await?)
    }

    async fn link(&self, nic: &Label, state: LinkState) -> Result<(), Error> {
        let up = state == LinkState::Up;
        Ok(self.client.set_link(&device::nic_id(nic), up, QMP_LIMIT).await?)
    }

    /// Requests the release of a device, and waits for it within a bound.
    async fn remove(&self, id: &str) -> Result<ChangeOutcome, Error> {
        let until = tokio::time::Instant::now() + LET_GO;
        if !self.client.devices(QMP_LIMIT).await?.iter().any(|other| other == id) {
            return Ok(ChangeOutcome::Asked);
        }
        match self.client.remove_device(id, QMP_LIMIT).await {
            // Requested earlier, but not released yet.
            Err(qmp::Error::Refused { desc, .. }) if is_unplug_pending(&desc) => {}
            asked => asked?,
        }
        while self.client.devices(QMP_LIMIT).await?.iter().any(|other| other == id) {
            if tokio::time::Instant::now() > until {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(ChangeOutcome::Asked)
    }

    /// Returns the root port of a device at a start, else any free one.
    async fn free_port(
        &self,
        at_start: Option<PciLocation>,
        count: usize,
        name: fn(usize) -> String,
    ) -> Result<String, Error> {
        let mut taken = vec![];
        for device in self.client.devices(QMP_LIMIT).await? {
            if device.starts_with("disk-") || device.starts_with("nic-") {
                taken.push(self.client.bus_of(&device, QMP_LIMIT).await?);
            }
        }
        let wanted = match at_start {
            Some(PciLocation::Port(port)) => Some(port),
            Some(PciLocation::Slot(_)) | None => None,
        };
        let all = wanted.into_iter().chain((0..count).map(name));
        all.into_iter().find(|port| !taken.contains(port)).ok_or(Error::NoPort(count))
    }
}

/// Removes the nodes and back ends of a device that the guest has released.
pub(crate) async fn tidy(client: &qmp::Client, change: &LiveChange) {
    match change {
        LiveChange::RemoveDisk(disk) => close_nodes(client, disk).await,
        LiveChange::RemoveNic(nic) => {
            let _ = client.remove_net(&device::net_id(nic), QMP_LIMIT).await;
        }
        _ => {}
    }
}

/// Closes the nodes of a disk without a device, and their files, if they exist.
async fn close_nodes(client: &qmp::Client, disk: &Label) {
    let node = device::node(disk);
    for node in [node.clone(), device::format_node(disk), device::file_node_of(disk)] {
        let _ = client.remove_node(&node, QMP_LIMIT).await;
    }
    for object in [device::throttle_group(disk), device::iothread(disk)] {
        let _ = client.remove_object(&object, QMP_LIMIT).await;
    }
    for (set, opaque) in client.fd_sets(QMP_LIMIT).await.unwrap_or_default() {
        if PassedFile::is_of(&opaque, &node) {
            let _ = client.remove_fds(set, QMP_LIMIT).await;
        }
    }
}

/// Returns the MAC address of a NIC, which the VM's identity keeps, and whether the NIC uses
/// vhost-net.
fn mac_of(
    settings: &Settings,
    vm: &Vm,
    nic: &Nic,
    cancel: &Cancel,
) -> Result<(Option<MacAddr>, bool), prepare::Error> {
    let facts = facts_of(settings)?;
    let waiter = Waiter { cancel, say: &|text| tracing::info!("{text}") };
    let machine = &facts.qemu.machine;
    let identity = identity_store::ensure(&settings.identity_source(), vm, machine, false, waiter)?;
    let mac = nic.mac.or_else(|| identity.macs.get(&nic.name).copied());
    let bridged = matches!(nic.link, Link::Bridge { .. });
    Ok((mac, facts.vhost_net && bridged))
}

#[cfg(test)]
mod tests;
