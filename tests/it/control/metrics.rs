//! `qvm metrics`, read by the Python parser of Prometheus, with correct values.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use crate::lab::{Lab, guest, until};
use serde_json::Value;

/// The package `python3-prometheus-client` of Debian.
const PYTHON: &str = "/usr/bin/python3";
const PARSE: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families as families
samples = lambda f: [[s.name, s.labels, s.value] for s in f.samples]
print(json.dumps([[f.name, f.type, f.documentation, samples(f)]
                  for f in families(sys.stdin.read())]))
";

/// The samples from the parser: family, type, help, and each sample's name, labels and value.
fn parsed(text: &str) -> Option<Value> {
    let there = Command::new(PYTHON).args(["-c", "import prometheus_client"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(!crate::lab::required("prometheus"), "no Python package `prometheus_client`");
        println!("skipped: no Python package `prometheus_client`");
        return None;
    }
    let mut python = Command::new(PYTHON)
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The value of a sample with these labels.
fn value(all: &Value, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let families = all.as_array().unwrap().iter();
    let mut samples = families.flat_map(|family| family[3].as_array().unwrap());
    let found = samples
        .find(|sample| sample[0] == name && labels.iter().all(|(key, is)| sample[1][*key] == *is));
    found?[2].as_f64()
}

#[test]
fn prometheus_reads_correct_metrics() {
    let Some(image) = guest("boot-spin.qcow2") else { return };
    let lab = Lab::new();
    let file = "vcpu = 2\nautostart = true\ncpuWeight = 300\n[disk.data]\nsize = \"8M\"\n";
    lab.vm("web", &image, file);
    lab.vm("idle", &image, "");
    fs::write(lab.file("broken"), "vcpu = \n").unwrap();
    lab.ok(&["start", "web"]);
    until("it has used some time", || lab.status("web")["cpuSeconds"].as_f64() > Some(0.3));
    lab.ok(&["start", "idle"]);
    lab.ok(&["kill", "idle"]);
    let text = lab.ok(&["metrics"]);
    let Some(all) = parsed(&text) else { return };
    let mut seen = BTreeSet::new();
    for family in all.as_array().unwrap() {
        let (name, kind) = (family[0].as_str().unwrap(), family[1].as_str().unwrap());
        assert!(name.starts_with("qvm_") && seen.insert(name.to_owned()), "{name}");
        assert!(!family[2].as_str().unwrap().is_empty(), "{name} has no help");
        // https://prometheus.io/docs/practices/naming/
        let total = family[3][0][0].as_str().unwrap().ends_with("_total");
        assert_eq!(kind == "counter", total, "{name}");
        for unit in ["_ms", "_ns", "_kb", "_mb", "_percent", "_nanoseconds"] {
            assert!(!name.ends_with(unit), "{name}");
        }
    }
    for (name, labels, is) in [
        ("qvm_vm_state", &[("vm", "web"), ("state", "running")][..], 1.0),
        ("qvm_vm_state", &[("vm", "web"), ("state", "stopped")], 0.0),
        ("qvm_vm_state", &[("vm", "idle"), ("state", "stopped")], 1.0),
        ("qvm_vm_supervisor_up", &[("vm", "web")], 1.0),
        ("qvm_vm_supervisor_up", &[("vm", "idle")], 0.0),
        ("qvm_vm_autostart", &[("vm", "web")], 1.0),
        ("qvm_vm_file_valid", &[("vm", "broken")], 0.0),
        ("qvm_vm_info", &[("vm", "web"), ("accel", "tcg")], 1.0),
        ("qvm_vm_vcpus", &[("vm", "web")], 2.0),
        ("qvm_vm_memory_bytes", &[("vm", "web")], f64::from(64 << 20)),
        ("qvm_vm_cpu_weight", &[("vm", "web")], 300.0),
        ("qvm_vm_pending_changes", &[("vm", "web"), ("takes_effect", "live")], 0.0),
        ("qvm_vm_disk_size_bytes", &[("vm", "web"), ("disk", "data")], f64::from(8 << 20)),
        ("qvm_vm_disk_written_bytes_total", &[("vm", "web"), ("disk", "root")], 0.0),
    ] {
        assert_eq!(value(&all, name, labels), Some(is), "{name} {labels:?}\n{text}");
    }
    let of = |name: &str, labels: &[(&str, &str)]| value(&all, name, labels).unwrap();
    assert!(of("qvm_vm_last_end_time_seconds", &[("vm", "idle"), ("reason", "killed")]) > 1e9);
    // At least the boot sectors.
    assert!(of("qvm_vm_disk_read_bytes_total", &[("vm", "web"), ("disk", "root")]) >= 1536.0);
    let cpu = of("qvm_vm_cpu_seconds_total", &[("vm", "web")]);
    let spinning = of("qvm_vm_vcpu_seconds_total", &[("vm", "web"), ("vcpu", "0")]);
    assert!(cpu >= 0.3 && spinning > 0.0 && spinning <= cpu + 1.0, "{cpu} {spinning}");
    assert!(of("qvm_vm_memory_resident_bytes", &[("vm", "web")]) > f64::from(1 << 20));

    // Into a file that is replaced atomically, and that the collector may read.
    let output = lab.path().join("qvm.prom");
    fs::write(&output, "old").unwrap();
    assert_eq!(lab.ok(&["metrics", "--output", output.to_str().unwrap()]), "");
    assert!(parsed(&fs::read_to_string(&output).unwrap()).is_some());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(output.metadata().unwrap().permissions().mode() & 0o777, 0o644);
    let failed = lab.qvm(&["metrics", "--output", "/nonexistent/qvm.prom"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/nonexistent/"), "{failed:?}");
    lab.ok(&["kill", "web"]);
}

#[test]
fn watched_list_ends_with_its_reader() {
    use std::io::Read;
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    let mut list = lab
        .command(&["list", "--watch", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = list.stdout.take().unwrap();
    let mut text = String::new();
    while text.matches("NAME").count() < 2 {
        let mut bytes = [0; 4096];
        let count = out.read(&mut bytes).unwrap();
        assert!(count > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(!text.contains('\x1b'), "{text:?}");
    drop(out);
    // The next line has no reader: no error is printed.
    let ended = list.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    lab.ok(&["kill", "web"]);
}
