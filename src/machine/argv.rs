//! Builds the QEMU command line as a pure function of the machine.
//!
//! Devices, block nodes, network back ends and objects are JSON, so that paths and names need no
//! escaping; `key=value` options contain only safe words. docs/decisions/ explains every fixed
//! choice.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    device::{self, BadPath},
    disk_file::DiskFile,
    facts::Accelerator,
    fd,
    fdset::{self, Files, PassedFile},
    firmware::SelectedFirmware,
};
use crate::store::{identity::Identity, layout::VmPaths};
use crate::{
    spec::{Display, Vm},
    value::{Label, MacAddr, Size},
};

/// The input of the command line.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The VM file.
    pub vm: &'a Vm,
    /// The identity of the VM.
    pub identity: &'a Identity,
    /// The VM's directories.
    pub paths: &'a VmPaths,
    /// KVM or TCG.
    pub accel: Accelerator,
    /// Each tap has a vhost-net descriptor.
    pub vhost_net: bool,
    /// The file of each disk, in the order of `vm.disks`.
    pub disks: &'a [DiskFile],
    /// The firmware; `None` is QEMU's SeaBIOS.
    pub firmware: Option<&'a SelectedFirmware>,
    /// QEMU restores a saved state instead of booting.
    pub restores: bool,
    /// QEMU uses its own seccomp filter (`-sandbox`).
    pub sandbox: bool,
}

/// A QEMU command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments after the program.
    pub arguments: Vec<String>,
    /// The files whose descriptors QEMU inherits.
    pub files: Vec<PassedFile>,
}

/// The strictest filter of QEMU: no obsolete system calls, set*uid, fork and exec, priorities and
/// limits.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

impl Machine<'_> {
    /// Returns the address of a NIC from the VM file or the identity.
    pub fn mac(&self, nic: &Label) -> Option<MacAddr> {
        let written = self.vm.nics.iter().find(|n| n.name == *nic).and_then(|n| n.mac);
        written.or_else(|| self.identity.macs.get(nic).copied())
    }
}

/// Returns the command line.
///
/// # Errors
/// One of the few paths that QEMU opens by name is not UTF-8.
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

/// Returns the CPU model: all features of the host, or of TCG.
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

    /// Adds a display adapter that every firmware and kernel supports, and a tablet for an absolute
    /// pointer.
    fn screen(&mut self, display: &Display) {
        let vga = json!({"driver": "VGA", "id": "screen"});
        self.json("-device", &device::at(vga, device::VGA_SLOT));
        let usb = json!({"driver": "qemu-xhci", "id": "usb"});
        self.json("-device", &device::at(usb, device::USB_SLOT));
        self.json("-device", &json!({"driver": "usb-tablet", "id": "tablet", "bus": "usb.0"}));
        // The supervisor listens and passes connections to QEMU: without authentication from the
        // Unix socket, with a password from a TCP port.
        if display.vnc.is_some() {
            self.pair("-vnc", "none,password=on");
        }
    }
}

/// Returns a path as UTF-8 for JSON.
pub(crate) fn text(path: &Path) -> Result<&str, BadPath> {
    path.to_str().ok_or_else(|| BadPath(path.to_owned()))
}
