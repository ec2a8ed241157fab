//! Any text as what the host's packet filter and kernel say: no panic, no circle without an end, numbers that can be counted with, and a remedy
//! that is one line.

use std::fs;

use qvm::{
    host::{meminfo, pressure, process_time},
    plan::doctor::{Table, iptables, nft},
};

/// The first byte chooses whose words they are.
pub fn check(bytes: &[u8]) {
    let Some((&choice, text)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    match choice % 4 {
        0 => nft(&text).iter().flatten().for_each(weighed),
        1 => weighed(&iptables(&text, choice & 4 == 4)),
        2 => pressures(&text),
        _ => processes(&text),
    }
}

fn weighed(table: &Table) {
    assert!(table.ipv4 || table.ipv6);
    for bridge in ["br0", "virbr0"] {
        let Some(chain) = table.dropping(bridge) else { continue };
        assert_eq!(table.dropping(bridge), Some(chain), "another answer the second time");
        let remedy = qvm::value::plain(&table.remedy(chain, bridge));
        assert!(remedy.contains(bridge) && !remedy.contains('\n'), "{remedy}");
    }
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
