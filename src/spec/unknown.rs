//! What was probably meant by a key or a word that is not known.

use std::collections::BTreeSet;

use super::{
    nearest::{nearest, plain},
    table::NO_CPU_MODEL,
};

/// What other programs call a key: the word, and what to write here.
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

/// What is asked of the guest's CPU and cannot be chosen, without what differs between ways of writing it.
const CPU_MODEL: [&str; 6] = ["model", "type", "features", "flags", "cpumodel", "cputype"];
/// What else than `vcpu` the number of CPUs is called in a table of its own.
const CPU_COUNT: [&str; 6] = ["count", "cores", "cpus", "num", "sockets", "threads"];

/// The hint for an unknown `key` in the table at `table` (empty for the top of the file), which
/// knows `known`; `all` are the keys of a VM file.
pub(super) fn hint(all: &BTreeSet<String>, table: &str, key: &str, known: &[&str]) -> String {
    if key == "name" && table.is_empty() {
        return "a VM is called what its file is called; leave it out".into();
    }
    let plain = plain(key);
    let of_the_cpu = table == "cpu" || (table.is_empty() && plain.starts_with("cpu"));
    if of_the_cpu && CPU_MODEL.contains(&plain.as_str()) {
        return NO_CPU_MODEL.into();
    }
    if table == "cpu" && CPU_COUNT.contains(&plain.as_str()) {
        return "how many CPUs the guest has is `vcpu`, at the top of the file".into();
    }
    if let Some(place) = place(all, table, key) {
        return place;
    }
    let elsewhere = ELSEWHERE.iter().find(|(word, ours)| *word == plain && known.contains(ours));
    match elsewhere.map(|(_, ours)| *ours).or_else(|| nearest(key, known)) {
        Some(ours) => format!("did you mean `{ours}`?"),
        None => {
            let here = if table.is_empty() { "here".into() } else { format!("in `[{table}]`") };
            let mut known = known.to_vec();
            known.sort_unstable();
            format!("{here} can be: {}", known.join(", "))
        }
    }
}

/// The hint for an unknown `key` in the host's settings, which know `known`.
pub(super) fn host_hint(all: &BTreeSet<String>, key: &str, known: &[&str]) -> String {
    let is_a_vms = all.contains(key) || all.iter().any(|path| path.split('.').next() == Some(key));
    match nearest(key, known) {
        Some(ours) => format!("did you mean `{ours}`?"),
        None if is_a_vms => {
            format!("`{key}` belongs in the files of VMs, in `vms/` beside this file")
        }
        None => {
            let mut known = known.to_vec();
            known.sort_unstable();
            format!("here can be: {}", known.join(", "))
        }
    }
}

/// Where a key that is not known in `table` belongs, if it is known elsewhere.
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
