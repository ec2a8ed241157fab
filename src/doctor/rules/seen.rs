//! The results of the probes, from which the rules make findings.

use std::collections::BTreeMap;

use super::finding::Complaint;
use crate::{
    control::isolation::Isolation,
    machine::facts::{Kvm, Machine, Qemu},
    spec::{Admission, Problem, Vm},
    store::identity::Identity,
    supervisor::start::memory_budget::Memory,
    sys::cgroup::Cgroups,
    value::{IfName, VmName},
};

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
    pub disk_space: Option<DiskSpace>,
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
    pub(super) fn written(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().filter_map(|vm| vm.written.as_ref())
    }
}

/// The result of the probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmSeen {
    /// Whether it can be used.
    pub usable: Kvm,
    /// Whether only root can open the device, while QEMU runs as other users.
    pub only_root: bool,
    /// `kvm_intel` or `kvm_amd`, if one is loaded.
    pub module: Option<String>,
    /// Whether guests can use nested virtualization (the module's parameter `nested`).
    pub nested: bool,
    /// Whether the processor supports it: `vmx` or `svm` in the flags of /proc/cpuinfo.
    pub offered: bool,
}

/// The results of the QEMU probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuSeen {
    /// The binary, its version, and the machine type of new VMs.
    pub qemu: Qemu,
    /// All machine types; empty if unknown.
    pub machines: Vec<Machine>,
}

/// The results of the network probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The interfaces that VM files name as bridges.
    pub bridges: BTreeMap<IfName, Interface>,
    /// Whether bridged frames pass through the packet filter; `None` without the module
    /// `br_netfilter`.
    pub netfilter: Option<Netfilter>,
    /// The states of the modules that filter taps, in the order of [`NEEDED`].
    pub filter_modules: Vec<Module>,
    /// The installed programs of the packet filter.
    pub firewalls: Vec<Firewall>,
}

/// Which bridged frames pass through the packet filter (`/proc/sys/net/bridge/bridge-nf-call-*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Netfilter {
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

/// The interface with the name of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interface {
    /// No interface.
    Missing,
    /// An interface that is not a bridge.
    Other,
    /// A bridge.
    Bridge(Bridge),
}

/// A bridge (`/sys/class/net/NAME`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Whether it is administratively up.
    pub up: bool,
    /// The MTU in bytes; `None` if it cannot be read.
    pub mtu: Option<u32>,
    /// `bridge/stp_state`: 0 off, 1 by the kernel, 2 by a program.
    pub stp: u8,
    /// `bridge/forward_delay`, in hundredths of a second.
    pub forward_delay: u64,
    /// Its ports.
    pub ports: Vec<BridgePort>,
}

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgePort {
    /// The interface.
    pub name: String,
    /// Whether it is the tap of a guest.
    pub tap: bool,
}

/// The kernel modules of the filter (net/sched/Kconfig).
pub const NEEDED: [&str; 2] = ["sch_ingress", "cls_bpf"];

/// The availability of a kernel module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// It is loaded, built in or loadable.
    Available,
    /// It is neither built in nor installed for this kernel.
    NotInstalled,
    /// It is installed but not loaded, and `kernel.modules_disabled` prevents loading.
    LoadingDisabled,
    /// Unknown.
    Unknown,
}

/// A program that lists the packet filter's chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// `nft`, `iptables` or `ip6tables`.
    pub program: String,
    /// Its version line, such as `iptables v1.8.9 (nf_tables)`.
    pub version: String,
    /// The chains at the forward hook whose policy is drop, or why they are unknown.
    pub dropping: Result<Vec<ForwardChain>, String>,
}

/// A base chain at the forward hook whose policy is drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// Its name for a reader: `` `FORWARD` of iptables ``.
    pub name: String,
    /// The command that lists its rules.
    pub listing: String,
    /// IPv4 packets pass the chain.
    pub ipv4: bool,
    /// IPv6 packets pass the chain.
    pub ipv6: bool,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpace {
    /// A directory on the file system.
    pub at: String,
    /// The space available to unprivileged users, in bytes.
    pub free: u64,
    /// The size, in bytes.
    pub total: u64,
}

/// A disk file in the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSeen {
    /// The size for the guest, in bytes.
    pub virtual_size: u64,
    /// The allocated size, in bytes.
    pub allocated: u64,
}

/// The unit of a VM, as printed by `systemctl show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The name.
    pub id: String,
    /// Whether the unit exists.
    pub loaded: bool,
    /// The time limit of a stop in microseconds; `None` without a limit.
    pub stop_timeout: Option<u64>,
    /// The drop-ins, in the order in which they are read.
    pub drop_ins: Vec<String>,
    /// Whether a source file has changed since the last daemon-reload.
    pub stale: bool,
}

impl Unit {
    /// The required properties, for `systemctl show --property=`.
    pub const PROPERTIES: &str = "Id,LoadState,TimeoutStopUSec,DropInPaths,NeedDaemonReload";
}
