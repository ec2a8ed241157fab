//! What an earlier supervisor left: a QEMU process, the files it was started from, a saved state.

use std::{path::Path, sync::Arc};

use crate::{
    control::types::End,
    life::{self, Explanation, SavedState, StartEvent},
    spec::{self, Vm},
    store::{
        identity::Identity,
        intended_end,
        layout::VmPaths,
        record::{self, Record},
        running::{self, PreviousQemu},
        saved_header::Saved,
        saved_state, vm_file_copies,
    },
    supervisor::file_reading,
    sys::pidfd::Process,
    value::{Explain, VmName, chain},
};

/// What decides how a start continues.
#[derive(Debug)]
pub(super) struct PreviousRun {
    /// The last ends of the VM, newest first.
    pub(super) ends: Vec<End>,
    /// The identity; `None` if it does not exist or cannot be read.
    pub(super) identity: Option<Identity>,
    /// The VM files of the QEMU process.
    pub(super) booted: BootedVm,
    /// The QEMU process to adopt.
    pub(super) qemu: Option<(Arc<Process>, Box<Record>)>,
    /// The saved state to restore.
    pub(super) saved: Option<SavedVm>,
    /// The same, for the life machine.
    pub(super) event: StartEvent,
}

/// The VM files that a running QEMU process was configured by.
#[derive(Debug, Default)]
pub(crate) struct BootedVm {
    /// The file that it was started from, and its text; `None` if there is no valid copy.
    pub(crate) file: Option<(Vm, String)>,
    /// The file at the last reload; `None` if there was none.
    pub(crate) reloaded: Option<Vm>,
}

/// A saved state that can be restored.
#[derive(Debug)]
pub(crate) struct SavedVm {
    /// When it was saved, RFC 3339.
    pub(crate) at: String,
    /// The VM file that it was saved with.
    pub(crate) vm: Vm,
    /// The text of that file.
    pub(crate) text: String,
}

impl PreviousRun {
    /// Blocks as long as the storage does.
    ///
    /// The only scan of /proc of a start. It is proof: each start of a QEMU process requires the
    /// VM's lock, which this supervisor holds from before the scan until its QEMU process has the
    /// liveness locks.
    pub(super) fn read(paths: &VmPaths, name: &VmName, file: &Path) -> Self {
        let (saved_vm, saved) = read_saved(paths, name, file);
        let (qemu, event) = match running::find(paths) {
            Ok(PreviousQemu::Running(process, record)) => {
                (Some((process, record)), found(life::PreviousQemu::Running, saved))
            }
            Ok(PreviousQemu::None) => (None, found(life::PreviousQemu::None, saved)),
            Ok(PreviousQemu::Exited) => {
                let intended = intended_end::recorded(paths);
                (None, found(life::PreviousQemu::Exited { intended }, saved))
            }
            Ok(PreviousQemu::NeverExecuted) => {
                (None, found(life::PreviousQemu::NeverExecuted, saved))
            }
            Err(unknown) => {
                let why = Explanation {
                    code: unknown.code(),
                    text: chain(&unknown),
                    hint: unknown.hint_for(name),
                };
                (None, StartEvent::PreviousUnknown(why))
            }
        };
        Self {
            ends: record::ends(paths),
            identity: file_reading::identity(paths),
            booted: BootedVm {
                file: vm_file_copies::booted(paths, name, file),
                reloaded: vm_file_copies::reloaded(paths, name, file),
            },
            qemu,
            saved: saved_vm,
            event,
        }
    }
}

fn found(qemu: life::PreviousQemu, saved: SavedState) -> StartEvent {
    StartEvent::PreviousFound { qemu, saved }
}

fn read_saved(paths: &VmPaths, name: &VmName, file: &Path) -> (Option<SavedVm>, SavedState) {
    match saved_state::open(&paths.saved()) {
        Ok(None) => (None, SavedState::None),
        Ok(Some((Saved { vm_file, at, .. }, _))) => {
            let mut user_data = |path: &Path| std::fs::read(path);
            match spec::read(name, file, &vm_file, &mut user_data) {
                Ok(vm) => (Some(SavedVm { at, vm, text: vm_file }), SavedState::Usable),
                Err(_) => {
                    let why = "its VM file is not valid for this version of qvm";
                    (None, SavedState::Unusable(why.into()))
                }
            }
        }
        Err(error @ saved_state::Error::Content { .. }) => {
            (None, SavedState::Unusable(chain(&error)))
        }
        Err(saved_state::Error::File(error)) => {
            // A state that cannot be read now may be read by the next start.
            (None, SavedState::Unreadable(super::failure::explanation(&error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::Layout;

    fn vm(dir: &Path) -> (VmPaths, VmName, std::path::PathBuf) {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        let layout = Layout { config, state, runtime };
        let name: VmName = "web".parse().unwrap();
        let paths = layout.vm(&name);
        std::fs::create_dir_all(&paths.state).unwrap();
        std::fs::create_dir_all(&paths.runtime).unwrap();
        let file = layout.vm_file(&name);
        (paths, name, file)
    }

    #[test]
    fn empty_directories_are_a_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, name, file) = vm(dir.path());
        let previous = PreviousRun::read(&paths, &name, &file);
        assert_eq!(previous.event, found(life::PreviousQemu::None, SavedState::None));
        assert!(previous.qemu.is_none() && previous.booted.file.is_none());
    }

    #[test]
    fn served_socket_without_record_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, name, file) = vm(dir.path());
        let _qemu = std::os::unix::net::UnixListener::bind(paths.qmp_socket()).unwrap();
        let StartEvent::PreviousUnknown(why) = PreviousRun::read(&paths, &name, &file).event else {
            panic!("known");
        };
        assert!(why.hint.as_ref().is_some_and(|hint| !hint.contains("NAME")), "{why}");
    }

    #[test]
    fn saved_state_is_classified() {
        let dir = tempfile::tempdir().unwrap();
        let (paths, name, file) = vm(dir.path());
        let saved = |vm_file: &str| Saved {
            vm_file: vm_file.into(),
            at: "2026-01-01T00:00:00Z".into(),
            qemu_version: "10.0.0".into(),
            held: false,
            ready: true,
        };
        let write = |bytes: &[u8]| std::fs::write(paths.saved(), bytes).unwrap();
        let text = "[image]\npath = \"/srv/debian.qcow2\"\n";
        write(&saved(text).head());
        let previous = PreviousRun::read(&paths, &name, &file);
        assert_eq!(previous.event, found(life::PreviousQemu::None, SavedState::Usable));
        assert_eq!(previous.saved.unwrap().text, text);
        for bytes in [saved("no such key").head(), b"something else".to_vec()] {
            write(&bytes);
            let previous = PreviousRun::read(&paths, &name, &file);
            assert!(
                matches!(
                    &previous.event,
                    StartEvent::PreviousFound { saved: SavedState::Unusable(_), .. }
                ),
                "{:?}",
                previous.event
            );
            assert!(previous.saved.is_none());
        }
        std::fs::remove_file(paths.saved()).unwrap();
        std::fs::create_dir(paths.saved()).unwrap();
        let event = PreviousRun::read(&paths, &name, &file).event;
        assert!(
            matches!(&event, StartEvent::PreviousFound { saved: SavedState::Unreadable(_), .. }),
            "{event:?}"
        );
    }
}
