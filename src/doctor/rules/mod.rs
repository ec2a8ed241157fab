//! The rules of `qvm doctor`: findings from the results of the probes.
//!
//! One file for each subject, without any I/O.

pub(crate) mod anti_spoof;
pub(crate) mod cgroup;
pub(crate) mod claims;
pub(crate) mod firewall;
pub(crate) mod headroom;
pub(crate) mod isolation;
pub(crate) mod kvm;
pub(crate) mod network;
pub(crate) mod qemu;
#[cfg(test)]
mod tests;
pub(crate) mod unit;

use serde::Serialize;

pub use self::anti_spoof::{Module, NEEDED};
pub use self::firewall::{Firewall, ForwardChain, iptables, nft};
pub use self::headroom::{DiskSeen, Room};
pub use self::kvm::KvmSeen;
pub use self::network::{Bridge, Interface, Netfilter, Network, Port};
pub use self::qemu::QemuSeen;
pub use self::unit::{Unit, units};
pub use crate::sys::cgroup::Cgroups;

use crate::{
    control::isolation::Isolation, store::identity::Identity,
    supervisor::start::memory_budget::Memory,
};
use crate::{
    spec::{Admission, Problem, Vm},
    value::VmName,
};

/// The severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// No problem.
    Ok,
    /// Information.
    Note,
    /// A problem that may occur, or an unexpected behavior.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    /// Returns the word in tables and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A finding; an object of `qvm doctor --json`. Each text is one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    /// The subject, or the name of a VM.
    pub about: String,
    /// The fact and its consequence.
    pub found: String,
    /// The remedy.
    pub todo: Option<String>,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self { level, about: about.into(), found: one_line(found.as_ref()), todo: None }
    }

    fn ok(about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(Level::Ok, about, found)
    }

    fn note(about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(Level::Note, about, found)
    }

    fn warning(about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(Level::Warning, about, found)
    }

    fn error(about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(Level::Error, about, found)
    }

    fn complaint(level: Level, about: impl Into<String>, complaint: &Complaint) -> Self {
        Self::new(level, about, &complaint.what).maybe_todo(complaint.way_out.as_deref())
    }

    #[must_use]
    fn todo(self, todo: impl AsRef<str>) -> Self {
        self.maybe_todo(Some(todo))
    }

    #[must_use]
    fn maybe_todo(self, todo: Option<impl AsRef<str>>) -> Self {
        Self { todo: todo.map(|todo| one_line(todo.as_ref())), ..self }
    }
}

/// Output of other programs may have several lines and control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error with its chain of causes, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The error.
    pub what: String,
    /// The hint.
    pub way_out: Option<String>,
}

/// A VM, from its files and its supervisor.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSeen {
    /// The name of the VM.
    pub name: VmName,
    /// The VM file, if it is valid.
    pub written: Option<Vm>,
    /// The VM file that the running QEMU was started from.
    pub booted: Option<Vm>,
    /// Whether QEMU is or may be running.
    pub runs: bool,
    /// Why it is unknown whether QEMU is running.
    pub unknown: Option<Complaint>,
    /// The UID of QEMU, if it differs from the supervisor's.
    pub user: Option<u32>,
    /// `identity.toml`; `None` before the first start.
    pub identity: Result<Option<Identity>, Complaint>,
    /// Whether the firmware of the VM file is available.
    pub firmware: Result<(), Complaint>,
    /// Its disks in the state directory.
    pub disks: Vec<DiskSeen>,
}

/// All results of the probes.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// KVM.
    pub kvm: KvmSeen,
    /// The cgroup hierarchy of weights and limits.
    pub cgroups: Cgroups,
    /// The QEMU that starts VMs.
    pub qemu: Result<QemuSeen, Complaint>,
    /// Whether `qemu-img` is installed.
    pub qemu_img: bool,
    /// The result of a QEMU in a sandbox; `None` without QEMU.
    pub isolation: Option<Result<Isolation, Complaint>>,
    /// Bridges and packet filters.
    pub network: Network,
    /// The file system of the state directory; `None` if the probe failed.
    pub room: Option<Room>,
    /// The host's memory; `None` if it is unknown.
    pub memory: Option<Memory>,
    /// The policy for starts without enough memory.
    pub admission: Admission,
    /// The units of the VMs, if a service manager uses these directories.
    pub units: Option<Result<Vec<Unit>, Complaint>>,
    /// The VMs, by name.
    pub vms: Vec<VmSeen>,
    /// The problems of VM files, alone and together.
    pub problems: Vec<Problem>,
}

impl Seen {
    /// The valid VM files.
    fn written(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().filter_map(|vm| vm.written.as_ref())
    }
}

/// Returns all findings, in a fixed order.
pub fn examine(seen: &Seen) -> Vec<Finding> {
    let subjects: [fn(&Seen) -> Vec<Finding>; 12] = [
        super::rules::kvm::examine,
        super::rules::cgroup::examine,
        super::rules::qemu::examine,
        super::rules::isolation::examine,
        super::rules::network::examine,
        super::rules::anti_spoof::examine,
        super::rules::firewall::examine,
        super::rules::headroom::examine,
        super::rules::unit::examine,
        super::rules::claims::examine,
        unknown,
        files,
    ];
    subjects.iter().flat_map(|examine| examine(seen)).collect()
}

/// VMs of unknown state.
fn unknown(seen: &Seen) -> Vec<Finding> {
    let unknown = seen.vms.iter().filter_map(|vm| Some((vm, vm.unknown.as_ref()?)));
    unknown.map(|(vm, why)| Finding::complaint(Level::Error, vm.name.as_str(), why)).collect()
}

/// Invalid VM files.
fn files(seen: &Seen) -> Vec<Finding> {
    if seen.problems.is_empty() {
        let found = match seen.written().count() {
            0 => "there is none".to_owned(),
            1 => "the one there is is valid".to_owned(),
            count => format!("all {count} are valid"),
        };
        return vec![Finding::ok("VM files", found)];
    }
    let finding = |problem: &Problem| {
        let about = problem.file.file_stem().unwrap_or(problem.file.as_os_str());
        let line = problem.line.map_or_else(String::new, |line| format!(":{line}"));
        let key = problem.key.as_ref().map_or_else(String::new, |key| format!("{key}: "));
        let found = format!("{key}{} ({}{line})", problem.message, problem.file.display());
        Finding::error(one_line(&about.to_string_lossy()), found)
            .maybe_todo(problem.hint.as_deref())
    };
    seen.problems.iter().map(finding).collect()
}

/// Formats names for a sentence: `a`, `b` and 3 more.
fn names<'a>(names: impl IntoIterator<Item = &'a VmName>) -> String {
    const SHOWN: usize = 5;
    let all: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match all.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) if all.len() <= SHOWN => format!("{} and {last}", rest.join(", ")),
        Some(_) => {
            let shown: Vec<&str> = all.iter().take(SHOWN).map(String::as_str).collect();
            format!("{} and {} more", shown.join(", "), all.len() - SHOWN)
        }
    }
}
