//! Where everything is: every path that qvm makes or reads, said once.

use std::path::{Path, PathBuf};

use crate::{
    spec::{Format, HostSettings},
    value::{Label, VmName},
};

/// The three directories that all paths are below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// VM files and host settings: `/etc/qvm`, or `$XDG_CONFIG_HOME/qvm`.
    pub config: PathBuf,
    /// What survives a reboot: `/var/lib/qvm`, or `$XDG_DATA_HOME/qvm`.
    pub state: PathBuf,
    /// What does not: `/run/qvm`, or `$XDG_RUNTIME_DIR/qvm`.
    pub runtime: PathBuf,
}

impl Layout {
    /// The directory of all VM files.
    pub fn vm_files(&self) -> PathBuf {
        self.config.join("vms")
    }

    /// A VM's file.
    pub fn vm_file(&self, name: &VmName) -> PathBuf {
        self.vm_files().join(format!("{name}.toml"))
    }

    /// The settings of the host, for all VMs.
    pub fn host_settings(&self) -> PathBuf {
        self.config.join(HostSettings::FILE)
    }

    /// Held for a moment by a supervisor that looks whether there is memory for its VM.
    pub fn admission_lock(&self) -> PathBuf {
        self.runtime.join(".admission.lock")
    }

    /// Held by the one supervisor whose turn it is to start while the host is busy.
    pub fn turn_lock(&self) -> PathBuf {
        self.runtime.join(".turn.lock")
    }

    /// The directory of what VMs may take of the host's memory.
    pub fn reservations(&self) -> PathBuf {
        self.runtime.join(RESERVATIONS)
    }

    /// The image cache.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// What was found out about the installed QEMU, kept as long as the binary stays the same.
    pub fn facts_cache(&self) -> PathBuf {
        self.state.join("qemu.json")
    }

    /// Held while an identity.toml is changed, and while a UID or a MAC address that no other VM has is chosen. It has the name that
    /// earlier versions lock for the UID.
    pub fn identities_lock(&self) -> PathBuf {
        self.state.join("uids.lock")
    }

    /// The directory of all VMs' state.
    pub fn vm_states(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// The files of one VM.
    pub fn vm(&self, name: &VmName) -> VmPaths {
        VmPaths { state: self.vm_states().join(name), runtime: self.runtime.join(name) }
    }

    /// The files of a VM that is being made, under a name that no VM can have; with the lock of the VM that it will be.
    pub fn draft(&self, name: &VmName) -> VmPaths {
        VmPaths { state: self.vm_states().join(format!("{DRAFT}{name}")), ..self.vm(name) }
    }

    /// The VM that a directory beside the VMs' state is a draft of, if it is one.
    pub fn drafted(dir: &Path) -> Option<VmName> {
        dir.file_name()?.to_str()?.strip_prefix(DRAFT)?.parse().ok()
    }
}

/// A name that no VM can have.
const RESERVATIONS: &str = ".memory";
/// What the name of a draft begins with; a left-over, as of a file that was being written.
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
    /// UUID, instance-id, MACs, machine type.
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.toml")
    }

    /// A disk that qvm made.
    pub fn disk(&self, name: &Label, format: Format) -> PathBuf {
        self.state.join(format!("{name}.{}", format.name()))
    }

    /// The sectors of block devices, as the guest sees them.
    pub fn sector_sizes(&self) -> PathBuf {
        self.state.join("sector-sizes.json")
    }

    /// The NoCloud seed.
    pub fn seed(&self) -> PathBuf {
        self.state.join("seed.iso")
    }

    /// The UEFI variables.
    pub fn efi_vars(&self) -> PathBuf {
        self.state.join("efivars.fd")
    }

    /// What the serial console said, newest part.
    pub fn console_log(&self) -> PathBuf {
        self.state.join("console.log")
    }

    /// The last ten ends.
    pub fn ends(&self) -> PathBuf {
        self.state.join("ends.json")
    }

    /// A file that was to have the last ends, and could not be parsed.
    pub fn unreadable_ends(&self) -> PathBuf {
        self.state.join("ends.json.unreadable")
    }

    /// What the console said last before some of them: for the eyes of whoever may see the console.
    pub fn last_words(&self) -> PathBuf {
        self.state.join("last-words.json")
    }

    /// Held by the supervisor as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.runtime.join("lock")
    }

    /// The lock that QEMU holds until it is gone.
    pub fn qemu_lock(&self) -> PathBuf {
        self.runtime.join("qemu.lock")
    }

    /// The same beside the disks, which outlasts the runtime directory. Each host that has the state directory has its own file,
    /// named after its machine id; all hosts without one share a file.
    pub fn qemu_state_lock(&self, machine_id: Option<&str>) -> PathBuf {
        self.state.join(format!("qemu.{}.lock", machine_id.unwrap_or("no-machine-id")))
    }

    /// Whether a file of the state directory is such a lock, of this host or of another.
    pub fn is_qemu_state_lock(path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("qemu.") && name.ends_with(".lock"))
    }

    /// What a later supervisor needs to take over the running QEMU.
    pub fn record(&self) -> PathBuf {
        self.runtime.join("record.json")
    }

    /// What the VM may take of the host's memory; beside those of the others.
    pub fn reservation(&self) -> PathBuf {
        let name = self.runtime.file_name().unwrap_or_default();
        self.runtime.with_file_name(RESERVATIONS).join(name)
    }

    /// The VM file that the running QEMU was started from.
    pub fn booted(&self) -> PathBuf {
        self.runtime.join("booted.toml")
    }

    /// The VM file at the last reload: what was applied to the running QEMU since.
    pub fn reloaded(&self) -> PathBuf {
        self.runtime.join("reloaded.toml")
    }

    /// The guest's saved state.
    pub fn saved(&self) -> PathBuf {
        self.state.join("saved.state")
    }

    /// A saved state that could not be taken up.
    pub fn unusable(&self) -> PathBuf {
        self.state.join("unusable.state")
    }

    /// The supervisor's varlink socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// QEMU's QMP socket, for the supervisor alone.
    pub fn qmp_socket(&self) -> PathBuf {
        self.runtime.join("qmp.sock")
    }

    /// The guest agent's channel, for the supervisor alone.
    pub fn agent_socket(&self) -> PathBuf {
        self.runtime.join("agent.sock")
    }

    /// The serial console, for the supervisor alone.
    pub fn serial_socket(&self) -> PathBuf {
        self.runtime.join("serial.sock")
    }

    /// The guest's screen, by VNC.
    pub fn vnc_socket(&self) -> PathBuf {
        self.runtime.join("vnc.sock")
    }

    /// The password for it, where an earlier qvm wrote it down for QEMU.
    pub fn vnc_password(&self) -> PathBuf {
        self.runtime.join("vnc.password")
    }

    /// Standard error of a supervisor that was started without systemd, and of its QEMU.
    pub fn supervisor_log(&self) -> PathBuf {
        self.state.join("supervisor.log")
    }

    /// Is there as long as a VM that is being made has no VM file.
    pub fn unfinished(&self) -> PathBuf {
        self.state.join(".qvm-unfinished")
    }

    /// Where the VM's state goes at once when it is removed, under a name that no VM can have. It is the draft's name too: what
    /// either left is removed by whoever makes, removes or starts a VM of this name, under its lock.
    pub fn state_being_removed(&self) -> PathBuf {
        let mut name = std::ffi::OsString::from(DRAFT);
        name.push(self.state.file_name().unwrap_or_default());
        self.state.with_file_name(name)
    }
}
