//! Memory reservations: one file for each VM, from its admission to the end of its QEMU.
//!
//! All files are in one directory, so that a waiting supervisor watches only that. A reservation is
//! valid while its supervisor or the QEMU of its VM is running, so a crash needs no cleanup.

use std::{fs, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::layout::{Layout, VmPaths};
use super::running;
use crate::{
    sys::{file, pidfd},
    value::VmName,
};

/// How long an admitted VM counts as starting. Downloading its image for longer is no load on the
/// host.
const STARTING: Duration = Duration::from_secs(10);

/// The reservation of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reservation {
    /// The memory of the guest, in bytes.
    pub(crate) mem_bytes: u64,
    /// The PID of the supervisor.
    pub(crate) pid: u32,
    /// Its start time, as in /proc/PID/stat.
    pub(crate) start_time: u64,
    /// The boot ID of the host.
    pub(crate) boot_id: String,
    /// The VM is admitted and starting.
    pub(crate) goes: bool,
}

impl Reservation {
    /// Returns a reservation of this process.
    ///
    /// # Errors
    /// This process cannot be identified.
    pub(crate) fn new(mem_bytes: u64, goes: bool) -> Result<Self, file::Error> {
        let pid = std::process::id();
        let failed = |error| file::Error::on("read", Path::new("/proc"))(error);
        let start_time = pidfd::start_time(pid).map_err(failed)?;
        Ok(Self { mem_bytes, pid, start_time, boot_id: pidfd::boot_id().map_err(failed)?, goes })
    }

    /// Writes the reservation.
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    pub(crate) fn write(&self, paths: &VmPaths) -> Result<(), file::Error> {
        let path = paths.reservation();
        if let Some(dir) = path.parent() {
            file::make_dir(dir)?;
        }
        let text = serde_json::to_string(self).unwrap_or_default();
        file::write_volatile(&path, text.as_bytes(), 0o640)
    }

    /// Reads a reservation; `None` if there is none.
    fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns true if its supervisor is running or may be running.
    fn is_held(&self) -> bool {
        !matches!(pidfd::find(self.pid, self.start_time, &self.boot_id), Ok(None))
    }
}

/// Removes the reservation, which wakes waiting supervisors.
pub(crate) fn remove(paths: &VmPaths) {
    let _ = fs::remove_file(paths.reservation());
}

/// The reservations of other VMs.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Each VM with the memory of its guest, in bytes.
    pub(crate) mem: Vec<(VmName, u64)>,
    /// The number of VMs that are starting.
    pub(crate) starting: usize,
}

/// Returns all VMs except `own` that are running, may be running, or are admitted.
pub(crate) fn others(layout: &Layout, own: &VmName) -> Others {
    let mut others = Others::default();
    let processes = running::Processes::default();
    for name in directories(&layout.runtime).into_iter().filter(|name| name != own) {
        let paths = layout.vm(&name);
        let runs = || {
            let found = running::find_among(&paths, &processes);
            found.map_or(true, |previous| previous.is_running())
        };
        let reservation = Reservation::read(&paths.reservation());
        let mem = match &reservation {
            Ok(Some(held)) if held.is_held() || runs() => Some(held.mem_bytes),
            Ok(Some(_)) => None,
            // Supervisors of earlier versions write no reservation.
            Ok(None) if !paths.booted().exists() => None,
            Ok(None) | Err(_) if runs() => {
                let booted =
                    crate::store::vm_file_copies::booted(&paths, &name, &layout.vm_file(&name));
                booted.map(|(vm, _)| vm.mem.bytes())
            }
            Ok(None) | Err(_) => None,
        };
        let goes =
            reservation.is_ok_and(|held| held.is_some_and(|held| held.goes && held.is_held()));
        if goes && !paths.record().exists() && is_young(&paths.reservation()) {
            others.starting += 1;
        }
        others.mem.extend(mem.map(|mem| (name, mem)));
    }
    others
}

fn is_young(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|meta| meta.modified());
    // After the clock was set back, the file does not count as young.
    written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < STARTING))
}

fn directories(runtime: &Path) -> Vec<VmName> {
    let entries = fs::read_dir(runtime).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_held_reservations_count() {
        let dir = tempfile::tempdir().unwrap();
        let at = |place: &str| dir.path().join(place);
        let layout = Layout { config: at("c"), state: at("s"), runtime: at("r") };
        let name = |name: &str| -> VmName { name.parse().unwrap() };
        let seen = |own: &str| {
            let Others { mut mem, starting } = others(&layout, &name(own));
            mem.sort();
            (mem, starting)
        };
        assert_eq!(seen("own"), (vec![], 0));
        let put = |vm: &str, reservation: Reservation| {
            let paths = layout.vm(&name(vm));
            file::make_dir(&paths.runtime).unwrap();
            reservation.write(&paths).unwrap();
        };
        put("own", Reservation::new(1, true).unwrap());
        put("db", Reservation::new(2, false).unwrap());
        put("web", Reservation::new(3, true).unwrap());
        // A reused PID, and another boot.
        put("dead", Reservation { start_time: 1, ..Reservation::new(4, true).unwrap() });
        put("old", Reservation { boot_id: "x".into(), ..Reservation::new(5, true).unwrap() });
        fs::write(layout.vm(&name("db")).reservation().with_file_name(".qvm-x"), "{").unwrap();
        assert_eq!(seen("own"), (vec![(name("db"), 2), (name("web"), 3)], 1));
        // A VM with a QEMU process is no longer starting.
        fs::write(layout.vm(&name("web")).record(), "{").unwrap();
        assert_eq!(seen("own").1, 0);
        assert_eq!(seen("web").0, vec![(name("db"), 2), (name("own"), 1)]);
        remove(&layout.vm(&name("db")));
        assert_eq!(seen("own").0, vec![(name("web"), 3)]);
    }
}
