//! All VMs and their state: from VM files, state directories and running supervisors.

use std::{cell::RefCell, collections::BTreeSet, fs, io, path::Path, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::Instant;

use super::entry::unsupervised;
pub use super::entry::{Entry, Problem};
use crate::{
    control::{
        client::{self, Client},
        types::Status,
    },
    spec,
    store::layout::{Layout, VmPaths},
    sys::{pidfd::Process, socket},
    value::VmName,
};
use crate::{
    store::running::{self, PreviousQemu, Processes},
    sys::storage_reader::{self, ReadPosition, StorageReader},
};

/// The limit for a status reply of a supervisor.
pub const STATUS_LIMIT: Duration = Duration::from_secs(2);

/// The interval of calls to a supervisor that did not answer.
const RETRY: Duration = Duration::from_millis(20);

/// Returns the VMs with these names in that order, or without names all VMs by name. All
/// supervisors are asked in parallel. A VM whose storage does not answer has the state `unknown`
/// and the reason.
pub async fn inventory(storage: &StorageReader, layout: &Layout, names: &[VmName]) -> Vec<Entry> {
    let context = Context { storage, layout, processes: Arc::default() };
    let mut entries = match names.is_empty() {
        true => context.every().await,
        false => context.entries(names).await,
    };
    for entry in &mut entries {
        entry.status.notes.extend(entry.problem.as_ref().map(Problem::note));
        let orphan = entry.orphan();
        entry.status.notes.extend(orphan);
    }
    entries
}

/// Returns the names of all VMs. Blocks as long as the storage does.
pub fn names(layout: &Layout) -> Vec<VmName> {
    let files = spec::files_in(&layout.vm_files()).unwrap_or_default();
    let mut names: BTreeSet<VmName> = files.iter().filter_map(|f| spec::name_of(f).ok()).collect();
    names.extend(vm_dirs(&layout.vm_states()).unwrap_or_default());
    names.extend(running(&layout.runtime).unwrap_or_default());
    names.into_iter().collect()
}

/// Returns a VM whose state is unknown, if there is one. Supervisors are not asked: a VM with a
/// listening supervisor is known. Blocks as long as the storage does.
pub fn first_unknown(layout: &Layout) -> Option<(VmName, running::Unknown)> {
    let processes = Processes::default();
    names(layout).into_iter().find_map(|name| {
        let paths = layout.vm(&name);
        let unknown = running::find_among(&paths, &processes).err()?;
        let is_supervised = socket::is_served(&paths.control_socket()).unwrap_or(false);
        (!is_supervised).then_some((name, unknown))
    })
}

/// Returns the directories in `dir` whose names are valid VM names. A missing directory is empty.
fn vm_dirs(dir: &Path) -> io::Result<Vec<VmName>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let dirs = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Returns the VMs that have a control socket or a run record.
fn running(runtime: &Path) -> io::Result<Vec<VmName>> {
    let has = |name: &VmName, file: &str| runtime.join(name).join(file).symlink_metadata().is_ok();
    let mut names = vm_dirs(runtime)?;
    names.retain(|name| has(name, "control.sock") || has(name, "record.json"));
    Ok(names)
}

/// The context of an inventory.
struct Context<'a> {
    storage: &'a StorageReader,
    layout: &'a Layout,
    processes: Arc<Processes>,
}

impl Context<'_> {
    /// Returns all VMs by name. A directory that cannot be listed is a separate entry.
    async fn every(&self) -> Vec<Entry> {
        let (files, states) = (self.layout.vm_files(), self.layout.vm_states());
        let (listed, also_listed) = (files.clone(), states.clone());
        let files_in = self.storage.read(&files, move |_| spec::files_in(&listed));
        let states_in = self.storage.read(&states, move |_| vm_dirs(&also_listed));
        // The runtime directory is in memory: its VMs are asked while the storage of the others is
        // read.
        let runtime = &self.layout.runtime;
        let (running, mut entries) = match running(runtime) {
            Ok(names) => (names, vec![]),
            Err(error) => (vec![], vec![Entry::unlisted(runtime, &error)]),
        };
        // The names that have an entry already.
        let taken = RefCell::new(running.iter().cloned().collect::<BTreeSet<VmName>>());
        let is_new = |name: &VmName| taken.borrow_mut().insert(name.clone());
        let of_files = async {
            let mut unlisted = vec![];
            let mut names = vec![];
            match files_in.await {
                Ok(Ok(files)) => files.iter().for_each(|file| match spec::name_of(file) {
                    Ok(name) => names.push(name),
                    Err(invalid) => unlisted.push(Entry::misnamed(file, &invalid)),
                }),
                Ok(Err(invalid)) => unlisted.push(Entry::unlisted_files(&files, &invalid)),
                Err(error) => unlisted.push(Entry::unlisted(&files, &error)),
            }
            names.retain(is_new);
            (unlisted, self.entries(&names).await)
        };
        let of_states = async {
            let (mut names, unlisted) = match states_in.await {
                Ok(Ok(names)) => (names, vec![]),
                Ok(Err(error)) => (vec![], vec![Entry::unlisted(&states, &error)]),
                Err(error) => (vec![], vec![Entry::unlisted(&states, &error)]),
            };
            names.retain(is_new);
            (unlisted, self.entries(&names).await)
        };
        let (of_running, of_files, of_states) =
            tokio::join!(self.entries(&running), of_files, of_states);
        entries.extend(of_running);
        for (unlisted, read) in [of_files, of_states] {
            entries.extend(unlisted.into_iter().chain(read));
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    async fn entries(&self, names: &[VmName]) -> Vec<Entry> {
        join_all(names.iter().map(|name| self.entry(name))).await
    }

    /// Returns a VM. Its supervisor is asked first, because it answers even if the storage hangs.
    async fn entry(&self, name: &VmName) -> Entry {
        let mut is_second = false;
        loop {
            let silent = match self.ask(name).await {
                Ok(status) => return Entry::supervised(name, status),
                Err(client::Error::NotRunning) => None,
                Err(error) => Some(error),
            };
            let mut entry = match self.read(name).await {
                // A supervisor that has just started holds the locks, and answers by now.
                Ok((_, Err(_))) if silent.is_none() && !is_second => {
                    is_second = true;
                    continue;
                }
                Ok((entry, _)) => entry,
                Err(error) => Entry::no_answer(name.as_str(), &error),
            };
            if let Some(error) = silent {
                entry.is_silent(&error);
            }
            return entry;
        }
    }

    async fn read(&self, name: &VmName) -> Result<(Entry, running::Found), storage_reader::Error> {
        let (layout, processes, name) = (self.layout.clone(), self.processes.clone(), name.clone());
        let state = layout.vm(&name).state;
        let read =
            move |position: &ReadPosition| unsupervised(&layout, &name, &processes, position);
        self.storage.read(&state, read).await
    }

    /// Calls a supervisor, and retries while it does not accept or finish a call: it may be
    /// executing a new version of the program.
    async fn ask(&self, name: &VmName) -> Result<Status, client::Error> {
        let paths = self.layout.vm(name);
        let (socket, begun) = (paths.control_socket(), Instant::now());
        loop {
            let asked = async { Client::connect(&socket).await?.status(STATUS_LIMIT).await };
            let error = match asked.await {
                Ok(status) => return Ok(status),
                Err(error) => error,
            };
            let again = match &error {
                client::Error::Closed | client::Error::Io(_) => true,
                client::Error::NotRunning => self.is_supervised(&paths).await,
                _ => false,
            };
            if !again || begun.elapsed() >= STATUS_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether QEMU and the supervisor of the run record are alive.
    async fn is_supervised(&self, paths: &VmPaths) -> bool {
        let written = fs::read_to_string(paths.lock()).ok();
        let written = written.and_then(|text| text.trim().parse().ok());
        let lives = |pid| Process::open(pid).is_ok_and(|process| process.is_alive());
        if !written.is_some_and(lives) {
            return false;
        }
        let probed = paths.clone();
        let found = self.storage.read(&paths.state, move |_| running::find(&probed)).await;
        matches!(found, Ok(Err(_)) | Ok(Ok(PreviousQemu::Running(..))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::types::State;

    async fn all(dir: &Path) -> Vec<Entry> {
        let layout = Layout { config: dir.into(), state: dir.join("s"), runtime: dir.join("r") };
        inventory(&StorageReader::default(), &layout, &[]).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn files_states_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(all(dir.path()).await, vec![]);
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("vms/web.toml", "vcpu = 2\n");
        write("vms/Bad.toml", "vcpu = 2\n");
        write("vms/broken.toml", "vcpu = \n");
        let end =
            r#"[{"reason":"start-failed","at":"2026-01-01T00:00:00Z","detail":"x","failed":true}]"#;
        write("s/vms/web/ends.json", end);
        write("s/vms/orphan/ends.json", "{");
        let all = all(dir.path()).await;
        let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["Bad", "broken", "orphan", "web"]);
        assert!(all[0].problem.as_ref().unwrap().what.contains("`Bad` is not a VM name"));
        assert!(all[1].problem.as_ref().unwrap().what.contains("broken.toml:1:"));
        assert!(!all[2].file_exists && all[2].known && all[2].status.notes.len() == 2);
        let web = &all[3].status;
        assert_eq!((web.state, web.vcpu, web.ends.len()), (State::Failed, 2, 1));
        assert_eq!(web.since.as_deref(), Some("2026-01-01T00:00:00Z"));
    }
}
