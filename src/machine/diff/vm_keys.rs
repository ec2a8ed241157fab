//! The keys of a VM file except those of disks and NICs: their values, and when changes take
//! effect.
//!
//! Each function takes its part of a [`Vm`] apart without `..`: a field without a row does not
//! compile.

#![deny(unused_variables)]

use super::{
    change::ChangeKind,
    row::{Effect, Row, ScreenServer, Sides, joined, row, text, word},
    running_machine::{LiveChange, Versions},
};
use crate::spec::{CloudInit, Display, UserData, Vm};

/// The key of the VNC address.
pub(super) const VNC: &str = "display.vnc";

/// The effect of a key that only qvm reads.
macro_rules! at_once {
    ($field:ident) => {
        Effect::AtOnce(|to: &mut Vm, from: &Vm| to.$field.clone_from(&from.$field))
    };
}

/// Returns the rows of a VM, without disks and NICs.
pub(super) fn of_vm(vm: &Vm) -> Vec<Row<Vm>> {
    use Effect::{Depends, NextReboot, NextStart};
    let Vm {
        // Not keys of the file.
        name: _,
        file: _,
        lines: _,
        // disk_keys.rs and nic_keys.rs.
        disks: _,
        nics: _,
        description,
        autostart,
        after,
        vcpu,
        mem,
        cpu_weight,
        cpu_quota,
        cpu_pin,
        memory_max,
        io_weight,
        oom_score_adjust,
        ready,
        ready_timeout,
        ready_failure,
        host_shutdown,
        shutdown_timeout,
        accel,
        firmware,
        operators,
        isolation,
        on_panic,
        on_guest_reboot,
        tap_heal,
        cloud_init,
        display,
    } = vm;
    let pins = cpu_pin.iter().map(|list| format!("`{list}`"));
    let mut rows = vec![
        row("description", text(description.as_ref()), at_once!(description)),
        row("autostart", text(Some(autostart)), at_once!(autostart)),
        row("after", joined(after), at_once!(after)),
        row("vcpu", text(Some(vcpu)), NextReboot),
        row("mem", text(Some(mem)), Depends(MEMORY, memory)),
        row("cpuWeight", text(Some(cpu_weight)), at_once!(cpu_weight)),
        row("cpuQuota", text(cpu_quota.as_ref()), at_once!(cpu_quota)),
        row("cpu.pin", joined(pins), at_once!(cpu_pin)),
        row("memoryMax", text(memory_max.as_ref()), at_once!(memory_max)),
        row("ioWeight", text(io_weight.as_ref()), at_once!(io_weight)),
        row("oomScoreAdjust", text(oom_score_adjust.as_ref()), at_once!(oom_score_adjust)),
        // A completed start is not evaluated again.
        row("ready", text(Some(ready)), NextStart),
        row("readyTimeoutSec", text(Some(ready_timeout.get())), NextStart),
        row("readyFailure", Some(word(ready_failure)), at_once!(ready_failure)),
        row("hostShutdown", Some(word(host_shutdown)), at_once!(host_shutdown)),
        row("shutdownTimeoutSec", text(Some(shutdown_timeout.get())), at_once!(shutdown_timeout)),
        row("accel", Some(word(accel)), NextReboot),
        row("firmware", Some(word(firmware)), NextReboot),
        row("operators", joined(operators), at_once!(operators)),
        row("isolation", Some(word(isolation)), NextReboot),
        row("onPanic", Some(word(on_panic)), at_once!(on_panic)),
        row("onGuestReboot", Some(word(on_guest_reboot)), at_once!(on_guest_reboot)),
        row("tapHeal", Some(word(tap_heal)), at_once!(tap_heal)),
    ];
    rows.extend(of_seed(cloud_init.as_ref()));
    rows.extend(of_display(display.as_ref()));
    rows
}

fn of_seed(seed: Option<&CloudInit>) -> [Row<Vm>; 6] {
    use Effect::{CloudInitRerun, NextReboot};
    let none = CloudInit::default();
    let CloudInit { hostname, user, ssh_authorized_keys, password_hash, user_data } =
        seed.unwrap_or(&none);
    // Secrets are not printed, only whether they changed.
    let hash = password_hash.as_ref().map(|hash| fingerprint(hash.as_bytes()));
    let data = user_data.as_ref().map(|UserData { bytes, path: _, notes: _ }| fingerprint(bytes));
    let keys = joined(ssh_authorized_keys);
    [
        row("cloudInit", seed.map(|_| "a seed".to_owned()), NextReboot),
        row(
            "cloudInit.hostname",
            hostname.clone(),
            CloudInitRerun("set_hostname, update_etc_hosts"),
        ),
        row("cloudInit.user", user.clone(), CloudInitRerun("users_groups")),
        row("cloudInit.sshAuthorizedKeys", keys, CloudInitRerun("users_groups, ssh")),
        row("cloudInit.passwordHash", hash, CloudInitRerun("users_groups, set_passwords")),
        row("cloudInit.userData", data, CloudInitRerun("every module of the user-data")),
    ]
}

fn of_display(display: Option<&Display>) -> [Row<Vm>; 3] {
    let none = Display::default();
    let Display { vnc, password_file } = display.unwrap_or(&none);
    let file = password_file.as_ref().map(|path| path.display());
    [
        row("display", display.map(|_| "a screen".to_owned()), Effect::NextReboot),
        row(VNC, text(vnc.as_ref()), Effect::Depends(SCREEN, screen)),
        row("display.passwordFile", text(file), Effect::Depends(SCREEN, screen)),
    ]
}

/// Returns the rows of versions, which are not keys of the VM file.
pub(super) fn of_versions(versions: &Versions) -> [Row<Vm>; 3] {
    let Versions { qemu, firmware, instance } = versions;
    [
        row("qemu", qemu.clone(), Effect::NextReboot),
        row("firmware file", firmware.clone(), Effect::NextReboot),
        row("instance-id", instance.clone(), Effect::NextReboot),
    ]
}

const MEMORY: &str =
    "live up to the memory that QEMU was started with (balloon), above that next reboot";

fn memory(sides: &Sides<'_, Vm>) -> ChangeKind {
    let mem = sides.written.mem;
    match sides.facts.max_memory {
        most if mem <= most => ChangeKind::Live(LiveChange::SetMemory(mem)),
        _ => ChangeKind::NextReboot,
    }
}

const SCREEN: &str = "live; from not served, next reboot";

/// The supervisor can start a VNC server if QEMU was started with one.
fn screen(sides: &Sides<'_, Vm>) -> ChangeKind {
    let served = match sides.facts.screen {
        ScreenServer::Qemu => false,
        ScreenServer::Failed => true,
        ScreenServer::Supervisor => {
            sides.running.display.as_ref().is_some_and(|display| display.vnc.is_some())
        }
    };
    match &sides.written.display {
        Some(_) if served => ChangeKind::Screen,
        _ => ChangeKind::NextReboot,
    }
}

/// Returns a short hash of the bytes (FNV-1a, 64 bits).
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("({} bytes, {hash:016x})", bytes.len())
}
