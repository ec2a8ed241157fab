//! What of the host and of all VM files will trouble an operator, told out of what was seen of them.
//!
//! One file a subject: what is to be seen of it, and what that means. Nothing is looked at here.

pub(crate) mod anti_spoof;
pub(crate) mod cgroup;
pub(crate) mod claims;
mod code;
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

pub use self::code::FindingCode;

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

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, but will not always, or not as is expected.
    Warning,
    /// Something does not work.
    Error,
}

impl Level {
    /// The word for it, in tables and in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that was found; an object of what `qvm doctor --json` prints. Each text is one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was found, for programs.
    pub code: FindingCode,
    /// How bad it is.
    pub level: Level,
    /// What it is about: a subject, or a VM.
    pub about: String,
    /// What was seen, and what that leads to.
    pub found: String,
    /// What to do about it.
    pub todo: Option<String>,
}

impl Finding {
    fn new(
        code: FindingCode,
        level: Level,
        about: impl Into<String>,
        found: impl AsRef<str>,
    ) -> Self {
        Self { code, level, about: about.into(), found: one_line(found.as_ref()), todo: None }
    }

    fn ok(code: FindingCode, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(code, Level::Ok, about, found)
    }

    fn note(code: FindingCode, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(code, Level::Note, about, found)
    }

    fn warning(code: FindingCode, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(code, Level::Warning, about, found)
    }

    fn error(code: FindingCode, about: impl Into<String>, found: impl AsRef<str>) -> Self {
        Self::new(code, Level::Error, about, found)
    }

    fn complaint(
        code: FindingCode,
        level: Level,
        about: impl Into<String>,
        complaint: &Complaint,
    ) -> Self {
        Self::new(code, level, about, &complaint.what).maybe_todo(complaint.way_out.as_deref())
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

/// What another program said may have several lines, and worse.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error as whoever looked met it: the chain of causes, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub way_out: Option<String>,
}

/// One VM, as its files and its supervisor tell of it.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSeen {
    /// Its name.
    pub name: VmName,
    /// Its VM file, where that is valid.
    pub written: Option<Vm>,
    /// The VM file that the running QEMU was started from.
    pub booted: Option<Vm>,
    /// Its QEMU runs, or may do so.
    pub runs: bool,
    /// Why it is not known whether its QEMU runs.
    pub unknown: Option<Complaint>,
    /// The user that its QEMU is, where that is not its supervisor's.
    pub user: Option<u32>,
    /// `identity.toml`; none before its first start.
    pub identity: Result<Option<Identity>, Complaint>,
    /// Whether there is the firmware that its file asks for.
    pub firmware: Result<(), Complaint>,
    /// Its disks in the state directory.
    pub disks: Vec<DiskSeen>,
}

/// All that was looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// KVM.
    pub kvm: KvmSeen,
    /// The hierarchy that weights and limits are given in.
    pub cgroups: Cgroups,
    /// The QEMU that VMs are started with.
    pub qemu: Result<QemuSeen, Complaint>,
    /// Whether there is a `qemu-img`.
    pub qemu_img: bool,
    /// What a QEMU in its cell came to, tried; none without QEMU.
    pub isolation: Option<Result<Isolation, Complaint>>,
    /// Bridges and packet filters.
    pub network: Network,
    /// The file system of the state directory; none where it cannot be asked.
    pub room: Option<Room>,
    /// The host's memory; none where it is not told.
    pub memory: Option<Memory>,
    /// What becomes of a start that it is not enough for.
    pub admission: Admission,
    /// The units of the service manager that looks for VMs here, where there is one.
    pub units: Option<Result<Vec<Unit>, Complaint>>,
    /// The VMs, by name.
    pub vms: Vec<VmSeen>,
    /// What is wrong with VM files, each by itself and beside each other.
    pub problems: Vec<Problem>,
}

impl Seen {
    /// The valid VM files.
    fn written(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().filter_map(|vm| vm.written.as_ref())
    }
}

/// Everything there is to be said, subject by subject; the order of the findings is always the same.
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

/// VMs of which it is not known whether they run.
fn unknown(seen: &Seen) -> Vec<Finding> {
    let unknown = seen.vms.iter().filter_map(|vm| Some((vm, vm.unknown.as_ref()?)));
    unknown
        .map(|(vm, why)| {
            Finding::complaint(FindingCode::Unknown, Level::Error, vm.name.as_str(), why)
        })
        .collect()
}

/// VM files that are not valid.
fn files(seen: &Seen) -> Vec<Finding> {
    if seen.problems.is_empty() {
        let found = match seen.written().count() {
            0 => "there is none".to_owned(),
            1 => "the one there is is valid".to_owned(),
            count => format!("all {count} are valid"),
        };
        return vec![Finding::ok(FindingCode::VmFiles, "VM files", found)];
    }
    let finding = |problem: &Problem| {
        let about = problem.file.file_stem().unwrap_or(problem.file.as_os_str());
        let line = problem.line.map_or_else(String::new, |line| format!(":{line}"));
        let key = problem.key.as_ref().map_or_else(String::new, |key| format!("{key}: "));
        let found = format!("{key}{} ({}{line})", problem.message, problem.file.display());
        Finding::error(FindingCode::VmFileInvalid, one_line(&about.to_string_lossy()), found)
            .maybe_todo(problem.hint.as_deref())
    };
    seen.problems.iter().map(finding).collect()
}

/// `a`, `b` and 3 more: names in a sentence.
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
