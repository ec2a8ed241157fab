//! Suggestions for unknown keys and words.

use std::collections::BTreeSet;

use super::{
    nearest::{nearest, plain},
    table::NO_CPU_MODEL,
};

/// Key names of other programs, with the equivalent to write.
const ELSEWHERE: [(&str, &str); 13] = [
    ("memory", "mem"),
    ("ram", "mem"),
    ("cpus", "vcpu"),
    ("cpu", "vcpu"),
    ("cores", "vcpu"),
    ("onboot", "autostart"),
    ("nameservers", "dns"),
    ("macaddress", "mac"),
    ("bios", "firmware"),
    ("sshkeys", "sshAuthorizedKeys"),
    ("password", "passwordHash"),
    ("iso", "path"),
    ("file", "path"),
];

/// Normalized names of CPU model settings, which cannot be configured.
const CPU_MODEL: [&str; 6] = ["model", "type", "features", "flags", "cpumodel", "cputype"];
/// Other names for the number of CPUs in a separate table.
const CPU_COUNT: [&str; 6] = ["count", "cores", "cpus", "num", "sockets", "threads"];

/// Returns the hint for an unknown `key` in the table at `table` (empty for the top level) with the
/// keys `known`; `all` are the keys of a VM file.
pub(super) fn hint(all: &BTreeSet<String>, table: &str, key: &str, known: &[&str]) -> String {
    if key == "name" && table.is_empty() {
        return "remove it: the VM name is the name of the file".into();
    }
    let plain = plain(key);
    let of_the_cpu = table == "cpu" || (table.is_empty() && plain.starts_with("cpu"));
    if of_the_cpu && CPU_MODEL.contains(&plain.as_str()) {
        return NO_CPU_MODEL.into();
    }
    if table == "cpu" && CPU_COUNT.contains(&plain.as_str()) {
        return "use `vcpu` at the top of the file for the number of CPUs".into();
    }
    if let Some(place) = place(all, table, key) {
        return place;
    }
    let elsewhere = ELSEWHERE.iter().find(|(word, ours)| *word == plain && known.contains(ours));
    match elsewhere.map(|(_, ours)| *ours).or_else(|| nearest(key, known)) {
        Some(ours) => format!("did you mean `{ours}`?"),
        None => {
            let scope = if table.is_empty() { String::new() } else { format!(" in `[{table}]`") };
            let mut known = known.to_vec();
            known.sort_unstable();
            format!("valid keys{scope} are: {}", known.join(", "))
        }
    }
}

/// Returns the hint for an unknown `key` in the host settings with the keys `known`.
pub(super) fn host_hint(all: &BTreeSet<String>, key: &str, known: &[&str]) -> String {
    let is_a_vms = all.contains(key) || all.iter().any(|path| path.split('.').next() == Some(key));
    match nearest(key, known) {
        Some(ours) => format!("did you mean `{ours}`?"),
        None if is_a_vms => {
            format!("`{key}` belongs in VM files, in the directory `vms/` beside this file")
        }
        None => {
            let mut known = known.to_vec();
            known.sort_unstable();
            format!("valid keys are: {}", known.join(", "))
        }
    }
}

/// Returns the table of a key that is unknown in `table` but known elsewhere.
fn place(all: &BTreeSet<String>, table: &str, key: &str) -> Option<String> {
    let owners = all.iter().filter_map(|path| match path.rsplit_once('.') {
        Some((owner, last)) => (last == key).then_some(owner),
        None => (path == key).then_some(""),
    });
    let shared =
        |owner: &&str| owner.split('.').zip(table.split('.')).filter(|(a, b)| a == b).count();
    let owner = owners.max_by_key(shared)?;
    let instance = match table.split('.').nth(1) {
        Some(name) if owner.split('.').next() == table.split('.').next() => name,
        _ if owner.starts_with("disk") => "root",
        _ => "net",
    };
    Some(match owner {
        "" => format!("`{key}` belongs at the top of the file, above the first `[table]`"),
        owner => format!("`{key}` belongs in `[{}]`", owner.replace("NAME", instance)),
    })
}
