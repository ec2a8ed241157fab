//! Any text as what the host's packet filter, kernel, QEMU and service manager say: no panic, numbers that can be
//! counted with, commands that are one line, a machine type that can be kept.

use std::fs;

use qvm::{
    doctor::rules::{ForwardChain, iptables, nft, units},
    machine::facts::{Version, machines, newest_q35},
    store::identity::Identity,
    sys::{meminfo, pressure, process_time},
    value::{base64, to_base64},
};

/// The first byte chooses whose words they are.
pub fn check(bytes: &[u8]) {
    let Some((&choice, text)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    match choice & 0b1011 {
        0 => nft(&text).iter().flatten().for_each(listed),
        1 => iptables(&text, "ip6tables").iter().for_each(listed),
        2 => pressures(&text),
        3 => processes(&text),
        8 => qemu(&text),
        9 => in_base64(&text),
        _ => systemd(&text),
    }
}

/// What it is taken for goes into `identity.toml`, and from there onto each command line.
fn qemu(text: &str) {
    let _ = Version::parse(text);
    let _ = machines(text);
    if let Some(machine) = newest_q35(text) {
        let uuid = "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
        let vm = super::vm_file::minimal();
        let identity = Identity::new(&vm, uuid.clone(), &uuid, &machine);
        assert_eq!(identity.flaw(), None, "{machine}");
    }
}

fn in_base64(text: &str) {
    let there = to_base64(text.as_bytes());
    assert_eq!(base64(&there).as_deref(), Some(text.as_bytes()));
    if let Some(bytes) = base64(text) {
        assert_eq!(base64(&to_base64(&bytes)), Some(bytes));
    }
}

fn systemd(text: &str) {
    for unit in units(text) {
        assert!(text.contains(&unit.id) && unit.drop_ins.iter().all(|path| text.contains(path)));
    }
}

fn listed(chain: &ForwardChain) {
    assert!(chain.ipv4 || chain.ipv6);
    assert!(!chain.listing.contains(char::is_control), "{:?}", chain.listing);
}

fn pressures(text: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["cpu.pressure", "memory", "io.pressure"] {
        fs::write(dir.path().join(name), text).expect("a file");
    }
    let found = pressure::of(dir.path()).expect("they are there");
    for one in [found.cpu, found.memory, found.io] {
        for number in [one.some, one.full, one.some_avg10] {
            assert!(number.is_finite() && number >= 0.0, "{number} of {text:?}");
        }
    }
    fs::write(dir.path().join("meminfo"), text).expect("a file");
    if let Some(bytes) = meminfo::total(dir.path()) {
        assert_eq!(bytes % 1024, 0, "{bytes}");
    }
}

fn processes(text: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let process = dir.path().join("7");
    fs::create_dir_all(process.join("task/7")).expect("a directory");
    // The first line is statm, the next schedstat, and the rest stat.
    let mut parts = text.splitn(3, '\n');
    for name in ["statm", "task/7/schedstat", "stat"] {
        fs::write(process.join(name), parts.next().unwrap_or_default()).expect("a file");
    }
    if let Some(used) = process_time::used(dir.path(), 7) {
        assert!(used.cpu_seconds.is_finite() && used.cpu_seconds >= 0.0, "{used:?}");
    }
    if let Some(thread) = process_time::thread(dir.path(), 7, 7) {
        assert!(thread.ran >= 0.0 && thread.waited >= 0.0, "{thread:?}");
    }
}
