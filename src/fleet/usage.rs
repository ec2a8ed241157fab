//! The resource usage of running VMs on the host: from /proc, cgroups, taps and QEMU's own
//! counters.

use std::{collections::BTreeMap, path::Path};

use futures_util::future::join_all;

use super::inventory::{Entry, STATUS_LIMIT};
use crate::{
    control::{client::Client, types::DiskStatistics},
    net::{
        broker::Network,
        link::{Counters, Links},
    },
    store::layout::Layout,
    sys::{
        cgroup,
        pressure::{self, Pressures},
        process_time::{self, Thread},
    },
    value::VmName,
};

/// Sets memory and CPU time of each running VM; `proc` is `/proc`.
pub fn fill_in(entries: &mut [Entry], proc: &Path) {
    for status in entries.iter_mut().map(|entry| &mut entry.status) {
        let Some(used) = status.pid.and_then(|pid| process_time::used(proc, pid)) else { continue };
        status.mem_resident_bytes = Some(used.resident_bytes);
        status.cpu_seconds = Some(used.cpu_seconds);
    }
}

/// The usage of one VM that its status does not contain, counted since the start of QEMU.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// The threads of the vCPUs.
    pub vcpus: Vec<Thread>,
    /// The disks.
    pub disks: Vec<DiskStatistics>,
    /// The NICs with a tap, counted from the guest's side.
    pub nics: Vec<(String, Counters)>,
    /// The pressure, if the VM has a separate cgroup.
    pub pressure: Option<Pressures>,
}

/// Returns the usage of each VM that answers, by name. All are asked in parallel; unavailable data
/// is left out.
pub async fn usage(layout: &Layout, entries: &[Entry], proc: &Path) -> BTreeMap<String, Usage> {
    let root = cgroup::root(proc).ok();
    let counters = match Links::open(Network::default().connect().await) {
        Ok(links) => links.counters().await.unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    };
    let running = entries.iter().filter(|entry| entry.answers);
    let each = running.filter_map(|entry| {
        let name: VmName = entry.name.parse().ok()?;
        Some((name, entry.status.pid?))
    });
    let all = each.map(async |(name, pid)| {
        let mut usage = Usage::default();
        let socket = layout.vm(&name).control_socket();
        let statistics = match Client::connect(&socket).await {
            Ok(mut client) => client.statistics(STATUS_LIMIT).await.unwrap_or_default(),
            Err(_) => Default::default(),
        };
        let thread = |thread: &u32| process_time::thread(proc, pid, *thread);
        usage.vcpus = statistics.vcpu_threads.iter().filter_map(thread).collect();
        usage.disks = statistics.disks;
        let nic = |tap: crate::control::types::NicTap| {
            Some((tap.nic, counters.get(&tap.tap)?.of_the_guest()))
        };
        usage.nics = statistics.taps.into_iter().filter_map(nic).collect();
        let own = root.as_ref().and_then(|root| cgroup::of_process(root, proc, pid));
        // The pressure of a shared cgroup is not that of this VM.
        let own = own.filter(|directory| is_of(directory, &name));
        usage.pressure = own.and_then(|directory| pressure::of(&directory));
        (name.to_string(), usage)
    });
    join_all(all).await.into_iter().collect()
}

/// Whether a cgroup is the VM's own: that of its unit, or the one created by its supervisor.
fn is_of(directory: &Path, name: &VmName) -> bool {
    let last = directory.file_name().and_then(|last| last.to_str()).unwrap_or_default();
    let parent = directory.parent().and_then(|dir| dir.file_name());
    last == format!("qvm@{name}.service")
        || (last == name.as_str() && parent.is_some_and(|parent| parent == "qvm"))
}
