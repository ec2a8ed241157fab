//! Checks across VM files: no exclusive resource is used by two VMs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::Path,
};

use super::{
    machine::Vm,
    nic::{Link, clash},
    problem::{Problem, one_line},
};
use crate::value::{Forward, IfName, MacAddr, VmName};

/// Returns every conflict among valid VMs. Of two VMs with a conflict, the later in `vms` gets the
/// problem, which names the earlier. `unread` are VMs with invalid files.
pub fn across(vms: &[&Vm], unread: &[VmName]) -> Vec<Problem> {
    let mut claims = Claims::default();
    let mut problems: Vec<Problem> = vms.iter().flat_map(|vm| claims.of(vm)).collect();
    order(vms, unread, &mut problems);
    problems
}

/// The resources claimed so far, with their VM and key.
#[derive(Default)]
struct Claims<'v> {
    macs: HashMap<MacAddr, (&'v Vm, String)>,
    addresses: HashMap<IpAddr, (&'v Vm, String)>,
    taps: HashMap<&'v IfName, (&'v Vm, String)>,
    forwards: HashMap<u16, Vec<(Forward, &'v Vm, String)>>,
    disks: HashMap<&'v Path, Vec<(bool, &'v Vm, String)>>,
}

impl<'v> Claims<'v> {
    /// Adds the claims of one VM, and returns the conflicts.
    fn of(&mut self, vm: &'v Vm) -> Vec<Problem> {
        let mut problems = Vec::new();
        for nic in &vm.nics {
            let key = |key: &str| format!("nic.{}.{key}", nic.name);
            if let Some(mac) = nic.mac {
                claim(&mut self.macs, mac, vm, key("mac"), &mut problems, |mac| {
                    format!("the MAC address `{mac}`")
                });
            }
            if let Some(ip) = nic.ip {
                claim(&mut self.addresses, ip.address(), vm, key("ip"), &mut problems, |ip| {
                    format!("the address `{ip}`")
                });
            }
            match &nic.link {
                Link::Bridge { tap, .. } => {
                    let written = vm.lines.contains_key(&key("tap"));
                    let key = key(if written { "tap" } else { "bridge" });
                    claim(&mut self.taps, tap, vm, key, &mut problems, |tap| {
                        format!("the tap `{tap}`")
                    });
                }
                Link::User { forward } => {
                    for forward in forward {
                        self.forward(*forward, vm, key("forward"), &mut problems);
                    }
                }
            }
        }
        for disk in &vm.disks {
            if let Some(path) = disk.source.own() {
                let key = match disk.source {
                    super::Source::Device(_) => format!("disk.{}.device", disk.name),
                    _ => format!("disk.{}.path", disk.name),
                };
                self.disk(path, disk.read_only, vm, key, &mut problems);
            }
        }
        problems
    }

    fn forward(&mut self, own: Forward, vm: &'v Vm, key: String, problems: &mut Vec<Problem>) {
        let taken = self.forwards.entry(own.host.port()).or_default();
        let other =
            taken.iter().find(|(forward, other, _)| other.name != vm.name && clash(forward, &own));
        if let Some((_, other, at)) = other {
            problems.push(problem(vm, &key, taken_by(&format!("the port of `{own}`"), other, at)));
        }
        taken.push((own, vm, key));
    }

    fn disk(
        &mut self,
        path: &'v Path,
        read_only: bool,
        vm: &'v Vm,
        key: String,
        problems: &mut Vec<Problem>,
    ) {
        let taken = self.disks.entry(path).or_default();
        let other = taken
            .iter()
            .find(|(theirs, other, _)| other.name != vm.name && !(*theirs && read_only));
        if let Some((_, other, at)) = other {
            let what = format!("the disk `{}`", one_line(&path.to_string_lossy()));
            let mut problem = problem(vm, &key, taken_by(&what, other, at));
            problem.hint = Some("two VMs can share a disk if both set `readOnly = true`".into());
            problems.push(problem);
        }
        taken.push((read_only, vm, key));
    }
}

fn claim<'v, K: std::hash::Hash + Eq + Copy>(
    taken: &mut HashMap<K, (&'v Vm, String)>,
    what: K,
    vm: &'v Vm,
    key: String,
    problems: &mut Vec<Problem>,
    named: impl Fn(K) -> String,
) {
    match taken.get(&what) {
        // The parser has already checked conflicts within one VM.
        Some((other, at)) if other.name != vm.name => {
            problems.push(problem(vm, &key, taken_by(&named(what), other, at)));
        }
        Some(_) => {}
        None => {
            taken.insert(what, (vm, key));
        }
    }
}

fn taken_by(what: &str, other: &Vm, key: &str) -> String {
    format!("{what} is already used by `{}` ({})", other.name, other.at(key))
}

fn problem(vm: &Vm, key: &str, message: String) -> Problem {
    Problem {
        line: vm.line(key),
        key: Some(vm.written(key)),
        ..Problem::of_file(&vm.file, message, None)
    }
}

/// Reports cycles of `after`, and names of VMs that do not exist.
fn order(vms: &[&Vm], unread: &[VmName], problems: &mut Vec<Problem>) {
    let by_name: BTreeMap<&VmName, &Vm> = vms.iter().map(|vm| (&vm.name, *vm)).collect();
    for vm in vms {
        for name in &vm.after {
            if by_name.contains_key(name) || unread.contains(name) {
                continue;
            }
            let mut problem = problem(vm, "after", format!("VM `{name}` does not exist"));
            problem.hint = nearest(name, &by_name).map(|near| format!("did you mean `{near}`?"));
            problems.push(problem);
        }
    }
    for circle in cycles(vms, &by_name) {
        // Reported once, at the last VM of the cycle.
        let place = |vm: &&&Vm| vms.iter().position(|other| other.name == vm.name);
        let Some(last) = circle.iter().max_by_key(place) else { continue };
        let start = circle.iter().position(|vm| vm.name == last.name).unwrap_or_default();
        let names = circle.iter().cycle().skip(start).take(circle.len() + 1);
        let names: Vec<String> = names.map(|vm| format!("`{}`", vm.name)).collect();
        let message = format!("cyclic start order: {}", names.join(" after "));
        let mut problem = problem(last, "after", message);
        problem.hint = Some("remove one of these keys".into());
        problems.push(problem);
    }
}

/// Returns each cycle of `after` once: a depth-first search without recursion over existing VMs.
fn cycles<'v>(vms: &[&'v Vm], by_name: &BTreeMap<&VmName, &'v Vm>) -> Vec<Vec<&'v Vm>> {
    let mut done: HashSet<&VmName> = HashSet::new();
    let mut found = Vec::new();
    for vm in vms {
        let mut path: Vec<(&'v Vm, usize)> = vec![(vm, 0)];
        while let Some((vm, next)) = path.last_mut() {
            let seen = done.contains(&vm.name);
            let Some(name) = vm.after.get(*next).filter(|_| !seen) else {
                done.insert(&vm.name);
                path.pop();
                continue;
            };
            *next += 1;
            let Some(after) = by_name.get(name) else { continue };
            match path.iter().position(|(vm, _)| vm.name == *name) {
                Some(start) => found.push(path.iter().skip(start).map(|(vm, _)| *vm).collect()),
                None => path.push((after, 0)),
            }
        }
    }
    found
}

fn nearest<'v>(name: &VmName, vms: &BTreeMap<&'v VmName, &Vm>) -> Option<&'v VmName> {
    vms.keys()
        .map(|other| (strsim::damerau_levenshtein(name.as_str(), other.as_str()), *other))
        .filter(|(distance, _)| *distance <= name.as_str().len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}
