//! The resource usage of VMs per second, from two samples.

use std::{collections::BTreeMap, path::Path, time::Instant};

use super::{
    cpu_share::weigh,
    inventory::{Entry, inventory},
    usage::{self, Usage},
};
use crate::sys::storage_reader::StorageReader;
use crate::{
    control::types::{State, Status},
    store::layout::Layout,
    sys::{
        meminfo,
        pressure::{self, Pressures},
    },
};

/// One sample.
#[derive(Debug)]
pub struct Sample {
    /// The time of the sample.
    pub at: Instant,
    /// All VMs.
    pub entries: Vec<Entry>,
    /// The usage of the running VMs, by name.
    pub usage: BTreeMap<String, Usage>,
    /// The pressure of the host, if its kernel supports PSI.
    pub pressure: Option<Pressures>,
    /// The total memory of the host, in bytes.
    pub memory: Option<u64>,
}

/// Takes a sample; `proc` is `/proc`.
pub async fn sample(storage: &StorageReader, layout: &Layout, proc: &Path) -> Sample {
    let mut entries = inventory(storage, layout, &[]).await;
    weigh(&mut entries, proc);
    usage::fill_in(&mut entries, proc);
    let usage = usage::usage(layout, &entries, proc).await;
    let (pressure, memory) = (pressure::of(&proc.join("pressure")), meminfo::total(proc));
    Sample { at: Instant::now(), entries, usage, pressure, memory }
}

/// The rates of a VM between two samples; `None` is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// The name of the VM.
    pub name: String,
    /// The state of the VM.
    pub state: State,
    /// CPU time in percent of one CPU.
    pub cpu: Option<f64>,
    /// Steal time: how long the vCPUs waited for a CPU, in percent of all vCPUs.
    pub delay: Option<f64>,
    /// The resident memory of QEMU on the host, in bytes.
    pub resident: Option<u64>,
    /// The guest's memory by the balloon, in bytes.
    pub given: u64,
    /// Bytes read per second, of all disks.
    pub read: Option<f64>,
    /// Bytes written per second, of all disks.
    pub written: Option<f64>,
    /// The average duration of a read or write, in seconds.
    pub latency: Option<f64>,
    /// Bytes per second received by the guest, of all NICs with a tap.
    pub received: Option<f64>,
    /// Bytes per second sent by the guest.
    pub sent: Option<f64>,
    /// The pressure of the last ten seconds in percent: the largest of CPU, memory and I/O.
    pub pressure: Option<f64>,
    /// The number of pending changes.
    pub pending: usize,
}

/// Returns the rates of every VM, in the order of the second sample.
pub fn rates(before: Option<&Sample>, now: &Sample) -> Vec<Rates> {
    now.entries.iter().map(|entry| of(before, now, &entry.status)).collect()
}

fn of(before: Option<&Sample>, now: &Sample, status: &Status) -> Rates {
    let name = &status.name;
    let usage = now.usage.get(name);
    let then = before.and_then(|before| {
        let entry = before.entries.iter().find(|entry| entry.name == *name)?;
        // A new QEMU process has counted from zero.
        let same = entry.status.pid.is_some() && entry.status.pid == status.pid;
        let usage = before.usage.get(name).filter(|_| same)?;
        Some((before.at, &entry.status, usage))
    });
    let seconds = then.map(|(at, ..)| now.at.duration_since(at).as_secs_f64());
    let seconds = seconds.filter(|seconds| *seconds > 0.0);
    // An unplugged disk no longer has counters.
    let difference = |of: &dyn Fn(&Usage) -> f64| {
        let (_, _, before) = then?;
        Some((of(usage?) - of(before)).max(0.0))
    };
    let rate = |of: &dyn Fn(&Usage) -> f64| Some(difference(of)? / seconds?);
    let disks = |of: fn(&crate::control::types::DiskStatistics) -> u64| {
        move |usage: &Usage| usage.disks.iter().map(of).sum::<u64>() as f64
    };
    let nics = |of: fn(&crate::net::link::Counters) -> u64| {
        move |usage: &Usage| usage.nics.iter().map(|(_, counters)| of(counters)).sum::<u64>() as f64
    };
    let has_taps = usage.is_some_and(|usage| !usage.nics.is_empty());
    let waited = |usage: &Usage| usage.vcpus.iter().map(|vcpu| vcpu.waited).sum::<f64>();
    let vcpus = usage.map_or(0, |usage| usage.vcpus.len());
    let busy = difference(&disks(|d| d.read_nanoseconds + d.write_nanoseconds));
    let operations = difference(&disks(|d| d.reads + d.writes)).filter(|count| *count > 0.0);
    let cpu = || Some((status.cpu_seconds? - then?.1.cpu_seconds?).max(0.0) / seconds? * 100.0);
    Rates {
        name: name.clone(),
        state: status.state,
        cpu: cpu(),
        delay: rate(&waited).filter(|_| vcpus > 0).map(|rate| rate / vcpus as f64 * 100.0),
        resident: status.mem_resident_bytes,
        given: status.mem_actual_bytes.unwrap_or(status.mem_bytes),
        read: rate(&disks(|d| d.read_bytes)),
        written: rate(&disks(|d| d.written_bytes)),
        latency: busy.zip(operations).map(|(busy, count)| busy / count / 1e9),
        received: rate(&nics(|c| c.received.bytes)).filter(|_| has_taps),
        sent: rate(&nics(|c| c.sent.bytes)).filter(|_| has_taps),
        pressure: usage
            .and_then(|usage| usage.pressure)
            .map(|p| p.cpu.some_avg10.max(p.memory.some_avg10).max(p.io.some_avg10)),
        pending: status.pending.len(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        control::types::DiskStatistics,
        net::link::{Counters, Traffic},
        sys::process_time::Thread,
    };

    async fn first(pid: u32, cpu: f64, usage: Usage) -> Sample {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("vms")).unwrap();
        std::fs::write(dir.path().join("vms/web.toml"), "vcpu = 2\n").unwrap();
        let layout = Layout {
            config: dir.path().into(),
            state: dir.path().join("s"),
            runtime: dir.path().join("r"),
        };
        let mut look = sample(&StorageReader::default(), &layout, &dir.path().join("proc")).await;
        let status = &mut look.entries[0].status;
        (status.state, status.pid, status.cpu_seconds) = (State::Running, Some(pid), Some(cpu));
        look.usage.insert("web".into(), usage);
        look
    }

    fn usage(factor: u64) -> Usage {
        let disk = DiskStatistics {
            name: "root".into(),
            read_bytes: 1000 * factor,
            written_bytes: 500 * factor,
            reads: factor,
            writes: factor,
            read_nanoseconds: 3_000_000 * factor,
            write_nanoseconds: 1_000_000 * factor,
            ..DiskStatistics::default()
        };
        let traffic = |bytes| Traffic { bytes, ..Traffic::default() };
        let counters = Counters { received: traffic(200 * factor), sent: traffic(100 * factor) };
        let thread = Thread { ran: factor as f64, waited: 0.5 * factor as f64 };
        Usage {
            vcpus: vec![thread; 2],
            disks: vec![disk],
            nics: vec![("net".into(), counters)],
            pressure: None,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn rates_between_two_samples() {
        let before = first(7, 10.0, usage(1)).await;
        let mut now = first(7, 13.0, usage(3)).await;
        now.at = before.at + Duration::from_secs(2);
        let [web] = rates(Some(&before), &now).try_into().unwrap();
        assert_eq!((web.cpu, web.delay), (Some(150.0), Some(50.0)));
        assert_eq!((web.read, web.written, web.latency), (Some(1000.0), Some(500.0), Some(0.002)));
        assert_eq!((web.received, web.sent), (Some(200.0), Some(100.0)));
        // Without requests there is no latency, but a rate of zero.
        let mut idle = first(7, 13.0, usage(3)).await;
        idle.at = now.at + Duration::from_secs(1);
        let [web] = rates(Some(&now), &idle).try_into().unwrap();
        assert_eq!((web.cpu, web.read, web.latency), (Some(0.0), Some(0.0), None));
        // Another QEMU process, or no first sample.
        let mut other = first(8, 1.0, usage(1)).await;
        other.at = idle.at + Duration::from_secs(1);
        let [web] = rates(Some(&idle), &other).try_into().unwrap();
        assert_eq!((web.cpu, web.read, web.delay), (None, None, None));
        assert_eq!(rates(None, &other)[0].cpu, None);
    }
}
