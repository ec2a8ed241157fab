//! Metrics of all VMs in Prometheus' text format 0.0.4: base units, `_total` for counters, and the
//! samples of a family together.
//!
//! A stopped VM has only its state and its last end.

use std::{collections::BTreeMap, fmt::Write};

use super::{inventory::Entry, usage::Usage};
use crate::{
    control::types::{Ready, State, Status, TakesEffect},
    net::link::Traffic,
    spec::LIMIT_KINDS,
};

/// A metric family: its samples share name, help and type.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<(String, f64)>,
}

/// All families in order.
#[derive(Default)]
struct Families(Vec<Family>);

impl Families {
    fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        self.0.push(Family { name, help, kind, samples: vec![] });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str) {
        self.family(name, "gauge", help);
    }

    fn counter(&mut self, name: &'static str, help: &'static str) {
        self.family(name, "counter", help);
    }

    /// Adds a sample to the last family.
    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        if let Some(family) = self.0.last_mut() {
            family.samples.push((format_labels(labels), value));
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for Family { name, help, kind, samples } in &self.0 {
            if samples.is_empty() {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        }
        text
    }
}

/// Formats labels, with escaped values: `{vm="web",disk="root"}`.
fn format_labels(labels: &[(&str, &str)]) -> String {
    let escaped =
        |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let each = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
    match labels {
        [] => String::new(),
        _ => format!("{{{}}}", each.collect::<Vec<_>>().join(",")),
    }
}

/// Returns the metrics of these VMs; `usage` is by name.
pub fn metrics(entries: &[Entry], usage: &BTreeMap<String, Usage>) -> String {
    let mut all = Families::default();
    all.gauge("qvm_build_info", "The version of qvm.");
    all.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let vms: Vec<(&str, &Entry)> =
        entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    states(&mut all, &vms);
    resources(&mut all, &vms);
    disk_limits(&mut all, &vms);
    let used: Vec<(&str, &Usage)> =
        usage.iter().map(|(name, usage)| (name.as_str(), usage)).collect();
    cpus(&mut all, &used);
    disks(&mut all, &used);
    networks(&mut all, &used);
    pressures(&mut all, &used);
    all.text()
}

fn states(all: &mut Families, vms: &[(&str, &Entry)]) {
    const STATES: [State; 7] = [
        State::Stopped,
        State::Starting,
        State::Running,
        State::Paused,
        State::Stopping,
        State::Failed,
        State::Unknown,
    ];
    all.gauge("qvm_vm_state", "The state of the VM: 1 for the current state, 0 for the others.");
    for (vm, entry) in vms {
        for state in STATES {
            let is = f64::from(u8::from(entry.status.state == state));
            all.sample(&[("vm", vm), ("state", state.word())], is);
        }
    }
    let mut flag = |name, help, of: &dyn Fn(&Entry) -> Option<bool>| {
        all.gauge(name, help);
        for (vm, entry) in vms {
            if let Some(is) = of(entry) {
                all.sample(&[("vm", vm)], f64::from(u8::from(is)));
            }
        }
    };
    flag("qvm_vm_supervisor_up", "Whether a supervisor answers.", &|e| Some(e.answers));
    flag("qvm_vm_ready", "Whether the condition `ready` of the VM file is met.", &|e| {
        e.status.ready.map(|ready| ready == Ready::Yes)
    });
    flag("qvm_vm_autostart", "Whether the VM is started with the host.", &|e| {
        e.file_exists.then_some(e.status.autostart)
    });
    flag("qvm_vm_file_valid", "Whether the VM file exists and is valid.", &|e| Some(e.file_valid));
    all.gauge("qvm_vm_info", "The QEMU version, accelerator and machine type of the VM.");
    for (vm, Entry { status, .. }) in vms {
        if let (Some(accel), Some(qemu), Some(machine)) =
            (&status.accel, &status.qemu_version, &status.machine)
        {
            let labels =
                [("vm", *vm), ("accel", accel), ("qemu_version", qemu), ("machine", machine)];
            all.sample(&labels, 1.0);
        }
    }
    all.gauge("qvm_vm_start_time_seconds", "The start time of QEMU in seconds since the epoch.");
    for (vm, entry) in vms {
        if let Some(at) = entry.status.started_at.as_deref().and_then(seconds) {
            all.sample(&[("vm", vm)], at);
        }
    }
    all.gauge("qvm_vm_pending_changes", "Differences between the VM file and the running VM.");
    for (vm, entry) in vms.iter().filter(|(_, entry)| entry.answers) {
        use TakesEffect::{CloudInitRerun, Destructive, Ignored, Live, NextReboot, NextStart};
        for effect in [Live, NextReboot, NextStart, CloudInitRerun, Destructive, Ignored] {
            let pending = entry.status.pending.iter().filter(|one| one.takes_effect == effect);
            all.sample(&[("vm", vm), ("takes_effect", effect.word())], pending.count() as f64);
        }
    }
    all.gauge(
        "qvm_vm_last_end_time_seconds",
        "The time of the VM's last end in seconds since the epoch, with its reason.",
    );
    for (vm, entry) in vms {
        if let Some(end) = &entry.status.last_stop
            && let Some(at) = seconds(&end.at)
        {
            let failed = if end.failed { "true" } else { "false" };
            all.sample(&[("vm", vm), ("reason", &end.reason), ("failed", failed)], at);
        }
    }
}

fn seconds(at: &str) -> Option<f64> {
    Some(at.parse::<jiff::Timestamp>().ok()?.as_millisecond() as f64 / 1000.0)
}

fn resources(all: &mut Families, vms: &[(&str, &Entry)]) {
    let of = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    type Value = fn(&Status) -> Option<f64>;
    let gauges: [(&'static str, &'static str, Value); 7] = [
        ("qvm_vm_vcpus", "The number of vCPUs.", |s| Some(f64::from(s.vcpu))),
        ("qvm_vm_memory_bytes", "The memory in the VM file.", |s| Some(s.mem_bytes as f64)),
        ("qvm_vm_cpu_weight", "cpu.weight in the VM file.", |s| Some(f64::from(s.cpu_weight))),
        ("qvm_vm_cpu_weight_effective", "cpu.weight in effect.", |s| {
            s.cpu_weight_effective.map(f64::from)
        }),
        (
            "qvm_vm_cpu_share_ratio",
            "The VM's share of the host's CPU time under full load, 0 to 1.",
            |s| s.cpu_share,
        ),
        ("qvm_vm_notes", "The number of notes in the VM's status.", |s| Some(s.notes.len() as f64)),
        ("qvm_vm_orphan", "Whether the VM has no VM file.", |s| {
            Some(f64::from(u8::from(s.orphan)))
        }),
    ];
    for (name, help, value) in gauges {
        all.gauge(name, help);
        for (vm, Entry { status, .. }) in vms.iter().filter(|(_, entry)| entry.status.vcpu > 0) {
            if let Some(value) = value(status) {
                all.sample(&[("vm", vm)], value);
            }
        }
    }
    all.gauge("qvm_vm_memory_actual_bytes", "The guest's memory by the balloon.");
    for (vm, entry) in vms {
        if let Some(bytes) = of(entry.status.mem_actual_bytes) {
            all.sample(&[("vm", vm)], bytes);
        }
    }
    all.gauge("qvm_vm_memory_resident_bytes", "The resident memory of QEMU on the host.");
    for (vm, entry) in vms {
        if let Some(bytes) = of(entry.status.mem_resident_bytes) {
            all.sample(&[("vm", vm)], bytes);
        }
    }
    all.counter("qvm_vm_cpu_seconds_total", "CPU time of the QEMU process.");
    for (vm, entry) in vms {
        if let Some(seconds) = entry.status.cpu_seconds {
            all.sample(&[("vm", vm)], seconds);
        }
    }
}

fn disk_limits(all: &mut Families, vms: &[(&str, &Entry)]) {
    for (name, help, is_bytes) in [
        ("qvm_vm_disk_limit_requests_per_second", "Requests that a disk may serve.", false),
        ("qvm_vm_disk_limit_bytes_per_second", "Bytes that a disk may transfer.", true),
    ] {
        all.gauge(name, help);
        for (vm, entry) in vms {
            for limit in &entry.status.disk_limits {
                let mut kinds = LIMIT_KINDS.into_iter().filter(|kind| kind.is_bytes == is_bytes);
                let Some(kind) = kinds.find(|kind| kind.key == limit.limit) else { continue };
                let operation = match kind.key {
                    "iopsRead" | "bandwidthRead" => "read",
                    "iopsWrite" | "bandwidthWrite" => "write",
                    _ => "all",
                };
                let labels = [("vm", *vm), ("disk", &limit.disk), ("operation", operation)];
                all.sample(&labels, limit.per_second as f64);
            }
        }
    }
}

fn cpus(all: &mut Families, used: &[(&str, &Usage)]) {
    let mut of = |name, help, value: fn(&crate::sys::process_time::Thread) -> f64| {
        all.counter(name, help);
        for (vm, usage) in used {
            for (nr, vcpu) in usage.vcpus.iter().enumerate() {
                all.sample(&[("vm", vm), ("vcpu", &nr.to_string())], value(vcpu));
            }
        }
    };
    of("qvm_vm_vcpu_seconds_total", "CPU time of the vCPU's thread.", |thread| thread.ran);
    of(
        "qvm_vm_vcpu_delay_seconds_total",
        "Time that the vCPU's thread waited for a CPU (the guest's steal time).",
        |thread| thread.waited,
    );
}

fn disks(all: &mut Families, used: &[(&str, &Usage)]) {
    use crate::control::types::DiskStatistics as Disk;
    type Value = fn(&Disk) -> Option<f64>;
    let gauges: [(&'static str, &'static str, Value); 2] = [
        ("qvm_vm_disk_size_bytes", "The size of the disk for the guest.", |d| {
            d.size_bytes.map(|bytes| bytes as f64)
        }),
        ("qvm_vm_disk_allocated_bytes", "The space allocated on the host.", |d| {
            d.allocated_bytes.map(|bytes| bytes as f64)
        }),
    ];
    let counters: [(&'static str, &'static str, Value); 8] = [
        ("qvm_vm_disk_read_bytes_total", "Bytes read.", |d| Some(d.read_bytes as f64)),
        ("qvm_vm_disk_written_bytes_total", "Bytes written.", |d| Some(d.written_bytes as f64)),
        ("qvm_vm_disk_reads_completed_total", "Reads completed.", |d| Some(d.reads as f64)),
        ("qvm_vm_disk_writes_completed_total", "Writes completed.", |d| Some(d.writes as f64)),
        ("qvm_vm_disk_flushes_completed_total", "Flushes completed.", |d| Some(d.flushes as f64)),
        ("qvm_vm_disk_read_time_seconds_total", "The total duration of all reads.", |d| {
            Some(d.read_nanoseconds as f64 / 1e9)
        }),
        ("qvm_vm_disk_write_time_seconds_total", "The total duration of all writes.", |d| {
            Some(d.write_nanoseconds as f64 / 1e9)
        }),
        ("qvm_vm_disk_flush_time_seconds_total", "The total duration of all flushes.", |d| {
            Some(d.flush_nanoseconds as f64 / 1e9)
        }),
    ];
    let gauges = gauges.map(|(name, help, value)| (name, "gauge", help, value));
    let counters = counters.map(|(name, help, value)| (name, "counter", help, value));
    for (name, kind, help, value) in gauges.into_iter().chain(counters) {
        all.family(name, kind, help);
        for (vm, usage) in used {
            for disk in &usage.disks {
                if let Some(value) = value(disk) {
                    all.sample(&[("vm", vm), ("disk", &disk.name)], value);
                }
            }
        }
    }
}

fn networks(all: &mut Families, used: &[(&str, &Usage)]) {
    let mut of = |name, help, received: bool, value: fn(&Traffic) -> u64| {
        all.counter(name, help);
        for (vm, usage) in used {
            for (nic, counters) in &usage.nics {
                let traffic = if received { &counters.received } else { &counters.sent };
                all.sample(&[("vm", vm), ("nic", nic)], value(traffic) as f64);
            }
        }
    };
    of("qvm_vm_network_receive_bytes_total", "Bytes received by the guest.", true, |t| t.bytes);
    of("qvm_vm_network_receive_packets_total", "Packets received by the guest.", true, |t| {
        t.packets
    });
    of("qvm_vm_network_receive_drop_total", "Packets to the guest that were dropped.", true, |t| {
        t.dropped
    });
    of("qvm_vm_network_transmit_bytes_total", "Bytes sent by the guest.", false, |t| t.bytes);
    of("qvm_vm_network_transmit_packets_total", "Packets sent by the guest.", false, |t| t.packets);
    of(
        "qvm_vm_network_transmit_drop_total",
        "Packets from the guest that were dropped.",
        false,
        |t| t.dropped,
    );
}

fn pressures(all: &mut Families, used: &[(&str, &Usage)]) {
    let mut of = |name, help, value: fn(&Usage) -> Option<f64>| {
        all.counter(name, help);
        for (vm, usage) in used {
            if let Some(value) = value(usage) {
                all.sample(&[("vm", vm)], value);
            }
        }
    };
    of(
        "qvm_vm_pressure_cpu_waiting_seconds_total",
        "Time that some threads waited for a CPU.",
        |u| Some(u.pressure?.cpu.some),
    );
    of(
        "qvm_vm_pressure_memory_waiting_seconds_total",
        "Time that some threads waited for memory.",
        |u| Some(u.pressure?.memory.some),
    );
    of(
        "qvm_vm_pressure_memory_stalled_seconds_total",
        "Time that all threads waited for memory.",
        |u| Some(u.pressure?.memory.full),
    );
    of("qvm_vm_pressure_io_waiting_seconds_total", "Time that some threads waited for I/O.", |u| {
        Some(u.pressure?.io.some)
    });
    of("qvm_vm_pressure_io_stalled_seconds_total", "Time that all threads waited for I/O.", |u| {
        Some(u.pressure?.io.full)
    });
}
