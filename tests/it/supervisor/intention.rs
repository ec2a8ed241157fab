//! A supervisor that is killed while it ends QEMU: the next one continues. A relay in front of
//! QEMU's monitor stops the supervisor at a command, so that it is killed between the command and
//! its effect.

use std::fs;

use crate::lab::{
    relayed::{Cut, Relayed},
    runs, until,
};

/// A VM with a supervisor, with a change that requires a new QEMU if `changed`.
fn supervised(image: &str, changed: bool) -> Option<(Relayed, usize)> {
    let mut vm = Relayed::new(image)?;
    let supervisor = vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    if changed {
        let text = fs::read_to_string(vm.lab.file("web")).unwrap();
        fs::write(vm.lab.file("web"), text.replace("64M", "96M")).unwrap();
        vm.lab.ok(&["reload", "web"]);
        until("the change is pending", || vm.lab.status("web")["pending"][0]["key"] == "mem");
    }
    Some((vm, supervisor))
}

/// Performs an operation that disconnects the supervisor, and kills the supervisor there.
fn killed_at(vm: &mut Relayed, supervisor: usize, cut: Cut, act: impl FnOnce(&Relayed)) {
    vm.cut(cut);
    act(vm);
    vm.is_cut();
    vm.lab.supervisor(supervisor).kill().unwrap();
    vm.lab.supervisor(supervisor).wait().unwrap();
    vm.goes_on();
}

/// Sends a request without waiting for its result.
fn ask(vm: &Relayed, words: &[&str]) {
    let mut command = vm.lab.command(words);
    // It ends with the supervisor of its request.
    std::thread::spawn(move || command.output());
}

/// The next supervisor launches a new QEMU with the change.
fn is_relaunched(vm: &mut Relayed) {
    let next = vm.lab.run("web");
    until("the new QEMU runs", || vm.lab.status("web")["memBytes"] == 96 << 20);
    vm.lab.wait_state("web", "running");
    assert!(!runs(vm.qemu), "the earlier QEMU is left");
    assert_eq!(vm.lab.last_reason("web"), "", "no run has ended");
    vm.lab.ok(&["kill", "web"]);
    assert_eq!(vm.lab.exit_code(next), Some(0));
}

#[test]
fn reboot_relaunches_after_a_crash() {
    // The guest may still be shutting down, or be down when the next supervisor starts.
    for is_down in [false, true] {
        let Some((mut vm, supervisor)) = supervised("boot.qcow2", true) else { return };
        killed_at(&mut vm, supervisor, Cut::Behind("system_powerdown"), |vm| {
            ask(vm, &["reboot", "web"]);
        });
        if is_down {
            until("the guest is down", || vm.run_state() == "shutdown");
        }
        is_relaunched(&mut vm);
    }
}

#[test]
fn guest_reboot_relaunches_after_a_crash() {
    let Some((mut vm, supervisor)) = supervised("boot.qcow2", true) else { return };
    killed_at(&mut vm, supervisor, Cut::Before("quit"), |vm| vm.lab.types("web", b"r"));
    is_relaunched(&mut vm);
}

#[test]
fn relaunch_follows_a_qemu_that_exited() {
    let Some((mut vm, supervisor)) = supervised("boot.qcow2", true) else { return };
    killed_at(&mut vm, supervisor, Cut::Before("quit"), |vm| ask(vm, &["reboot", "web"]));
    vm.ends();
    is_relaunched(&mut vm);
}

/// The guest ignores the power button: only the stop ladder of the next supervisor ends it.
#[test]
fn stop_continues_after_a_crash() {
    let Some((mut vm, supervisor)) = supervised("boot-deaf.qcow2", false) else { return };
    killed_at(&mut vm, supervisor, Cut::Behind("system_powerdown"), |vm| {
        ask(vm, &["stop", "--timeout", "1", "web"]);
    });
    let next = vm.lab.run("web");
    assert_eq!(vm.lab.exit_code(next), Some(0), "{}", vm.lab.log("web"));
    assert_eq!(vm.lab.last_reason("web"), "forced-off");
    assert!(!runs(vm.qemu));
}

/// A restarted supervisor does not start a VM that was stopped; `qvm start` does.
#[test]
fn intended_end_is_kept() {
    for (verb, reason) in [("stop", "stopped"), ("kill", "killed"), ("suspend", "suspended")] {
        for is_asked in [false, true] {
            let Some((mut vm, supervisor)) = supervised("boot.qcow2", false) else { return };
            killed_at(&mut vm, supervisor, Cut::Before("quit"), |vm| ask(vm, &[verb, "web"]));
            vm.ends();
            if is_asked {
                vm.lab.ok(&["start", "web"]);
                vm.lab.wait_state("web", "running");
            } else {
                let next = vm.lab.run("web");
                assert_eq!(vm.lab.exit_code(next), Some(0), "{verb}: {}", vm.lab.log("web"));
            }
            assert_eq!(vm.lab.last_reason("web"), reason);
            if is_asked {
                vm.lab.ok(&["kill", "web"]);
            }
        }
    }
}

/// The state is saved, and the guest must not continue: its disks would be newer than the state.
#[test]
fn suspended_guest_is_not_resumed_after_a_crash() {
    let Some((mut vm, supervisor)) = supervised("boot.qcow2", false) else { return };
    killed_at(&mut vm, supervisor, Cut::Before("quit"), |vm| ask(vm, &["suspend", "web"]));
    assert_eq!(vm.run_state(), "postmigrate");
    let next = vm.lab.run("web");
    assert_eq!(vm.lab.exit_code(next), Some(0), "{}", vm.lab.log("web"));
    assert_eq!(vm.lab.last_reason("web"), "suspended");
    assert!(!runs(vm.qemu) && vm.lab.state("web", "saved.state").exists());
    vm.lab.ok(&["start", "web"]);
    assert_eq!(vm.lab.console("web").matches("BOOT-GUEST-READY").count(), 1, "it has booted again");
    vm.lab.ok(&["kill", "web"]);
}

/// `ExecStopPost=` ends the remaining QEMU.
#[test]
fn reap_ends_a_pending_relaunch() {
    let Some((mut vm, supervisor)) = supervised("boot.qcow2", true) else { return };
    killed_at(&mut vm, supervisor, Cut::Behind("system_powerdown"), |vm| {
        ask(vm, &["reboot", "web"]);
    });
    vm.lab.ok(&["reap", "web"]);
    assert!(!runs(vm.qemu));
    assert_eq!(vm.lab.status("web")["state"], "stopped");
}
