//! QEMU's command line, as a value: one machine in, the arguments out, the same every time.
//!
//! Devices, block nodes, network back ends and objects are JSON, so that no path or name needs escaping;
//! what QEMU takes only as `key=value` gets nothing but words that are safe there. Every fixed choice is
//! explained in docs/decisions/.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    device::{self, BadPath},
    facts::Accelerator,
    fdset::{self, Files, Handed},
    firmware::Chosen,
};
use crate::store::{identity::Identity, layout::VmPaths};
use crate::{
    spec::{Display, Format, Vm},
    value::{Label, MacAddr, Size},
};

/// The descriptors that QEMU inherits, by number.
pub mod fd {
    /// The listening QMP socket.
    pub const QMP: i32 = 3;
    /// The listening socket of the guest agent's channel.
    pub const AGENT: i32 = 4;
    /// The listening socket of the serial console.
    pub const SERIAL: i32 = 5;

    /// The guest's saved state, at QEMU's own bytes.
    pub const STATE: i32 = 6;

    /// The liveness lock in the runtime directory.
    pub const RUNTIME_LOCK: i32 = 7;
    /// The liveness lock beside the disks.
    pub const STATE_LOCK: i32 = 8;

    /// The tap of the `index`th NIC.
    pub const fn tap(index: usize) -> i32 {
        10 + 2 * index as i32
    }

    /// The vhost-net device of the `index`th NIC.
    pub const fn vhost(index: usize) -> i32 {
        11 + 2 * index as i32
    }
}

/// Everything that the command line is made of.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The VM file.
    pub vm: &'a Vm,
    /// What must not change under the guest.
    pub identity: &'a Identity,
    /// The VM's directories.
    pub paths: &'a VmPaths,
    /// KVM or TCG.
    pub accel: Accelerator,
    /// Whether the taps come with a vhost-net descriptor each.
    pub vhost_net: bool,
    /// What each disk is, in the order of `vm.disks`.
    pub disks: &'a [DiskFile],
    /// The firmware; `None` is SeaBIOS, QEMU's own.
    pub firmware: Option<&'a Chosen>,
    /// QEMU takes up a saved state instead of booting.
    pub restores: bool,
    /// QEMU filters its own system calls: it can, and is to.
    pub sandbox: bool,
}

/// A disk as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    /// The file or block device.
    pub path: PathBuf,
    /// How bytes lie in it.
    pub format: Format,
    /// It is a block device of the host's.
    pub is_device: bool,
    /// What is below it, the nearest first.
    pub backing: Vec<Backing>,
}

/// A file that a qcow2 file stands on; never written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The file.
    pub path: PathBuf,
    /// How bytes lie in it.
    pub format: Format,
}

/// How QEMU is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments behind the binary's name.
    pub arguments: Vec<String>,
    /// The files whose descriptors it inherits.
    pub files: Vec<Handed>,
}

/// All that QEMU can filter: old system calls, other users' rights, other programs, priorities and limits.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

impl Machine<'_> {
    /// The address of a NIC: as written, or as the identity has it.
    pub fn mac(&self, nic: &Label) -> Option<MacAddr> {
        let written = self.vm.nics.iter().find(|n| n.name == *nic).and_then(|n| n.mac);
        written.or_else(|| self.identity.macs.get(nic).copied())
    }
}

/// The arguments, and the files that go with them.
///
/// # Errors
/// A path that is not UTF-8, of those few that QEMU opens by their names.
pub fn argv(machine: &Machine<'_>) -> Result<CommandLine, BadPath> {
    let vm = machine.vm;
    let mut out = Argv(vec![]);
    let mut files = Files::from(fdset::FIRST);
    out.pair("-name", &format!("{},debug-threads=on", vm.name));
    out.0.extend(["-nodefaults", "-no-user-config", "-S"].map(String::from));
    if machine.sandbox {
        out.pair("-sandbox", SANDBOX);
    }
    out.pair("-display", "none");
    if let Some(display) = &vm.display {
        out.screen(display);
    }
    out.pair("-machine", &machine_type(machine));
    out.pair("-accel", machine.accel.name());
    out.pair("-cpu", cpu(machine.accel));
    out.pair("-smp", &vm.vcpu.to_string());
    out.pair("-m", &format!("{}M", vm.mem.bytes() / Size::MIB));
    out.pair("-uuid", &machine.identity.uuid);
    out.pair("-rtc", "base=utc,driftfix=slew");
    out.pair("-boot", "strict=on");
    out.pair("-action", "reboot=reset,shutdown=pause,panic=pause");
    out.pair("-msg", "timestamp=on,guest-name=on");
    if let Some(firmware) = machine.firmware {
        if firmware.smm && firmware.secure {
            out.pair("-global", "driver=cfi.pflash01,property=secure,value=on");
        }
        if firmware.memory {
            out.pair("-bios", text(&firmware.code)?);
        } else {
            for node in device::flash(firmware, &machine.paths.efi_vars(), &mut files) {
                out.json("-blockdev", &node);
            }
        }
    }
    for (id, number) in [("qmp", fd::QMP), ("serial", fd::SERIAL), ("agent", fd::AGENT)] {
        out.pair("-chardev", &format!("socket,id={id},fd={number},server=on,wait=off"));
    }
    out.pair("-mon", "chardev=qmp,mode=control");
    out.json("-device", &json!({"driver": "isa-serial", "id": "serial0", "chardev": "serial"}));
    out.json("-device", &json!({"driver": "pvpanic", "id": "pvpanic"}));
    out.json("-object", &json!({"qom-type": "rng-builtin", "id": "entropy"}));
    let rng = json!({"driver": "virtio-rng-pci", "id": "rng", "rng": "entropy"});
    out.json("-device", &device::at(rng, device::RNG_SLOT));
    let balloon = json!({"driver": "virtio-balloon-pci", "id": "balloon",
        "deflate-on-oom": true, "free-page-reporting": true});
    out.json("-device", &device::at(balloon, device::BALLOON_SLOT));
    let ports = json!({"driver": "virtio-serial-pci", "id": "ports"});
    out.json("-device", &device::at(ports, device::PORTS_SLOT));
    out.json(
        "-device",
        &json!({"driver": "virtserialport", "id": "agent", "bus": "ports.0", "chardev": "agent",
            "name": "org.qemu.guest_agent.0"}),
    );
    for port in device::ports() {
        out.json("-device", &port);
    }
    for argument in device::disks(vm, machine.disks, &mut files) {
        out.json(argument.option, &argument.value);
    }
    if vm.cloud_init.is_some() {
        for argument in device::seed(vm, &machine.paths.seed(), &mut files) {
            out.json(argument.option, &argument.value);
        }
    }
    for (index, nic) in vm.nics.iter().enumerate() {
        let mac = machine.mac(&nic.name);
        for argument in device::nic(nic, index, mac, machine.vhost_net) {
            out.json(argument.option, &argument.value);
        }
    }
    if machine.restores {
        out.pair("-incoming", &format!("fd:{}", fd::STATE));
    }
    let files = files.into_all();
    for file in &files {
        out.pair("-add-fd", &file.option());
    }
    Ok(CommandLine { arguments: out.0, files })
}

/// The CPU model: all that the host has, or all that TCG can do.
fn cpu(accel: Accelerator) -> &'static str {
    match accel {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

fn machine_type(machine: &Machine<'_>) -> String {
    let mut text = format!("{},vmport=off", machine.identity.machine);
    if let Some(firmware) = machine.firmware {
        text.push_str(if firmware.smm { ",smm=on" } else { ",smm=off" });
        if firmware.memory {
            return text;
        }
        text.push_str(",pflash0=flash-code");
        if firmware.vars_template.is_some() {
            text.push_str(",pflash1=flash-vars");
        }
    }
    text
}

struct Argv(Vec<String>);

impl Argv {
    fn pair(&mut self, option: &str, value: &str) {
        self.0.push(option.to_owned());
        self.0.push(value.to_owned());
    }

    fn json(&mut self, option: &str, value: &Value) {
        self.pair(option, &value.to_string());
    }

    /// A screen that every guest's firmware and kernel can drive, and a tablet, whose pointer is where the viewer's is.
    fn screen(&mut self, display: &Display) {
        let vga = json!({"driver": "VGA", "id": "screen"});
        self.json("-device", &device::at(vga, device::VGA_SLOT));
        let usb = json!({"driver": "qemu-xhci", "id": "usb"});
        self.json("-device", &device::at(usb, device::USB_SLOT));
        self.json("-device", &json!({"driver": "usb-tablet", "id": "tablet", "bus": "usb.0"}));
        // The supervisor listens, and hands QEMU who comes: at the VM's own socket as trusted, at a port to be asked for the password.
        if display.vnc.is_some() {
            self.pair("-vnc", "none,password=on");
        }
    }
}

/// A path as JSON can say it.
pub(crate) fn text(path: &Path) -> Result<&str, BadPath> {
    path.to_str().ok_or_else(|| BadPath(path.to_owned()))
}
