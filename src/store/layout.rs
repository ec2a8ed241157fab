//! All paths of qvm.

use std::path::{Path, PathBuf};

use crate::{
    spec::{Format, HostSettings},
    value::{Label, SnapshotName, VmName},
};

/// The three top-level directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// VM files and host settings: `/etc/qvm`, or `$XDG_CONFIG_HOME/qvm`.
    pub config: PathBuf,
    /// State that survives a reboot: `/var/lib/qvm`, or `$XDG_DATA_HOME/qvm`.
    pub state: PathBuf,
    /// State that does not: `/run/qvm`, or `$XDG_RUNTIME_DIR/qvm`.
    pub runtime: PathBuf,
}

impl Layout {
    /// Returns the directory of all VM files.
    pub fn vm_files(&self) -> PathBuf {
        self.config.join("vms")
    }

    /// Returns the path of a VM file.
    pub fn vm_file(&self, name: &VmName) -> PathBuf {
        self.vm_files().join(format!("{name}.toml"))
    }

    /// Returns the path of the host settings.
    pub fn host_settings(&self) -> PathBuf {
        self.config.join(HostSettings::FILE)
    }

    /// Returns the lock of a supervisor that checks the free memory for its VM.
    pub fn admission_lock(&self) -> PathBuf {
        self.runtime.join(".admission.lock")
    }

    /// Returns the lock of the only supervisor that starts a VM while the host is busy.
    pub fn turn_lock(&self) -> PathBuf {
        self.runtime.join(".turn.lock")
    }

    /// Returns the directory of memory reservations.
    pub fn reservations(&self) -> PathBuf {
        self.runtime.join(RESERVATIONS)
    }

    /// Returns the directory of the image cache.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Returns the cache of facts about the installed QEMU, valid for an unchanged binary.
    pub fn facts_cache(&self) -> PathBuf {
        self.state.join("qemu.json")
    }

    /// Returns the identity lock: held while an identity.toml is changed, or a UID or MAC address
    /// is chosen. Earlier versions lock the same file for UIDs.
    pub fn identities_lock(&self) -> PathBuf {
        self.state.join("uids.lock")
    }

    /// Returns the directory of the state of all VMs.
    pub fn vm_states(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// The files of one VM.
    pub fn vm(&self, name: &VmName) -> VmPaths {
        VmPaths { state: self.vm_states().join(name), runtime: self.runtime.join(name) }
    }

    /// Returns the paths of a VM being created, under a name that no VM can have; the lock is that
    /// of the final VM.
    pub fn draft(&self, name: &VmName) -> VmPaths {
        VmPaths { state: self.vm_states().join(format!("{DRAFT}{name}")), ..self.vm(name) }
    }

    /// Returns the VM whose draft a directory is, if it is one.
    pub fn drafted(dir: &Path) -> Option<VmName> {
        dir.file_name()?.to_str()?.strip_prefix(DRAFT)?.parse().ok()
    }
}

/// The directory of reservations; not a valid VM name.
const RESERVATIONS: &str = ".memory";
/// The name prefix of drafts, the same as for unfinished files.
const DRAFT: &str = crate::sys::file::UNFINISHED;

/// The files of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPaths {
    /// `/var/lib/qvm/vms/NAME`.
    pub state: PathBuf,
    /// `/run/qvm/NAME`.
    pub runtime: PathBuf,
}

impl VmPaths {
    /// Returns the identity: UUID, instance-id, MACs, machine type.
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.toml")
    }

    /// Returns the path of a disk created by qvm.
    pub fn disk(&self, name: &Label, format: Format) -> PathBuf {
        self.state.join(format!("{name}.{}", format.name()))
    }

    /// The sectors of block devices, as the guest sees them.
    pub fn sector_sizes(&self) -> PathBuf {
        self.state.join("sector-sizes.json")
    }

    /// Returns the NoCloud seed.
    pub fn seed(&self) -> PathBuf {
        self.state.join("seed.iso")
    }

    /// Returns the UEFI variables.
    pub fn efi_vars(&self) -> PathBuf {
        self.state.join("efivars.fd")
    }

    /// Returns the directory of the snapshots' records.
    pub fn snapshots(&self) -> PathBuf {
        self.state.join("snapshots")
    }

    /// Returns the record of a snapshot.
    pub fn snapshot(&self, name: &SnapshotName) -> PathBuf {
        self.snapshots().join(format!("{name}.toml"))
    }

    /// Returns the UEFI variables of a snapshot.
    pub fn snapshot_efi_vars(&self, name: &SnapshotName) -> PathBuf {
        self.snapshots().join(format!("{name}.efivars.fd"))
    }

    /// Returns what the present disks are based on, and the snapshot operation in progress.
    pub fn present(&self) -> PathBuf {
        self.state.join("snapshots.toml")
    }

    /// Returns the newer half of the console log.
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// Returns the file of the last ten ends.
    pub fn ends(&self) -> PathBuf {
        self.state.join("ends.json")
    }

    /// Returns the name for a file of ends that cannot be parsed.
    pub fn unreadable_ends(&self) -> PathBuf {
        self.state.join("ends.json.unreadable")
    }

    /// Returns the last console lines before ends, readable only with access to the console.
    pub fn last_words(&self) -> PathBuf {
        self.state.join("last-words.json")
    }

    /// Returns the lock of the supervisor.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("lock")
    }

    /// Returns the lock that QEMU holds while it exists.
    pub fn qemu_lock(&self) -> PathBuf {
        self.runtime.join("qemu.lock")
    }

    /// Returns the second lock of QEMU, which is beside the disks and outlasts the run directory.
    /// Each host that shares the state directory has its own file, named after its machine ID;
    /// hosts without one share a file.
    pub fn qemu_state_lock(&self, machine_id: Option<&str>) -> PathBuf {
        self.state.join(format!("qemu.{}.lock", machine_id.unwrap_or("no-machine-id")))
    }

    /// Returns true if a file of the state directory is such a lock, of any host.
    pub fn is_qemu_state_lock(path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("qemu.") && name.ends_with(".lock"))
    }

    /// Returns the run record, from which a later supervisor adopts QEMU.
    pub fn record(&self) -> PathBuf {
        self.runtime.join("record.json")
    }

    /// Returns the memory reservation of the VM.
    pub fn reservation(&self) -> PathBuf {
        let name = self.runtime.file_name().unwrap_or_default();
        self.runtime.with_file_name(RESERVATIONS).join(name)
    }

    /// Returns the copy of the VM file from which QEMU was started.
    pub fn booted(&self) -> PathBuf {
        self.runtime.join("booted.toml")
    }

    /// Returns the copy of the VM file at the last reload.
    pub fn reloaded(&self) -> PathBuf {
        self.runtime.join("reloaded.toml")
    }

    /// Returns the saved state of the guest.
    pub fn saved(&self) -> PathBuf {
        self.state.join("saved.state")
    }

    /// Returns the name for a saved state that cannot be restored.
    pub fn unusable(&self) -> PathBuf {
        self.state.join("unusable.state")
    }

    /// Returns the varlink socket of the supervisor.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// Returns the QMP socket, for the supervisor only.
    pub fn qmp_socket(&self) -> PathBuf {
        self.runtime.join("qmp.sock")
    }

    /// Returns the socket of the guest agent, for the supervisor only.
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime.join("agent.sock")
    }

    /// Returns the socket of the serial console, for the supervisor only.
    pub fn serial_socket(&self) -> PathBuf {
        self.runtime.join("serial.sock")
    }

    /// Returns the VNC socket.
    pub fn vnc_socket(&self) -> PathBuf {
        self.runtime.join("vnc.sock")
    }

    /// Returns the VNC password file of an earlier qvm.
    pub fn vnc_password(&self) -> PathBuf {
        self.runtime.join("vnc.password")
    }

    /// Returns the log of a supervisor without systemd and of its QEMU.
    pub fn supervisor_log(&self) -> PathBuf {
        self.state.join("supervisor.log")
    }

    /// Returns the file that exists while a VM being created has no VM file.
    pub fn unfinished(&self) -> PathBuf {
        self.state.join(".qvm-unfinished")
    }

    /// Returns the name to which the state of a VM is moved before removal, which is also the name
    /// of drafts. The next process that creates, removes or starts a VM of this name removes
    /// leftovers under the VM's lock.
    pub fn state_being_removed(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(DRAFT);
        name.push(self.state.file_name().unwrap_or_default());
        self.state.with_file_name(name)
    }
}
