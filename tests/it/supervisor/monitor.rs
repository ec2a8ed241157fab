//! Connections to QEMU's monitor that close while QEMU runs: a relay between a supervisor and a
//! real QEMU closes them.

use std::thread;

use crate::lab::{
    relayed::{Cut, Relayed, command_qemu},
    runs, until,
};

const HOST: Option<i32> = Some(75);

#[test]
fn shutdown_during_a_lost_connection_ends_the_run() {
    let Some(mut vm) = Relayed::new("boot.qcow2") else { return };
    let supervisor = vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    vm.cut(Cut::Before("query-status"));
    until("the connection is cut", || {
        vm.lab.status("web");
        vm.cuts.try_recv().is_ok()
    });
    // Its events are sent to another connection.
    command_qemu(&vm.real, "system_powerdown", "SHUTDOWN");
    vm.goes_on();
    assert_eq!(vm.lab.exit_code(supervisor), Some(0));
    assert_eq!(vm.lab.last_reason("web"), "guest-shutdown");
    assert!(!runs(vm.qemu));
}

#[test]
fn pause_during_a_lost_connection_is_seen() {
    let Some(mut vm) = Relayed::new("boot.qcow2") else { return };
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    for (command, event, state) in [("stop", "STOP", "paused"), ("cont", "RESUME", "running")] {
        vm.cut(Cut::Before("query-status"));
        until("the connection is cut", || {
            vm.lab.status("web");
            vm.cuts.try_recv().is_ok()
        });
        command_qemu(&vm.real, command, event);
        vm.goes_on();
        vm.lab.wait_state("web", state);
    }
    vm.lab.ok(&["stop", "web"]);
}

#[test]
fn pause_is_answered_over_the_next_connection() {
    let Some(mut vm) = Relayed::new("boot.qcow2") else { return };
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    for (verb, command, state) in [("pause", "stop", "paused"), ("resume", "cont", "running")] {
        vm.cut(Cut::Behind(command));
        let lab = &vm.lab;
        thread::scope(|scope| {
            let asked = scope.spawn(|| lab.ok(&[verb, "web"]));
            vm.is_cut();
            vm.goes_on();
            asked.join().unwrap();
        });
        assert_eq!(vm.lab.status("web")["state"], state, "{verb}");
    }
    vm.lab.ok(&["stop", "web"]);
}

/// Exit code 1 would make the unit's ExecStopPost= end the guest.
#[test]
fn monitor_closed_during_adoption_is_a_host_fault() {
    let Some(mut vm) = Relayed::new("boot.qcow2") else { return };
    for command in ["qmp_capabilities", "query-status"] {
        vm.cut(Cut::Before(command));
        let supervisor = vm.lab.run("web");
        vm.is_cut();
        assert_eq!(vm.lab.exit_code(supervisor), HOST, "{command}: {}", vm.lab.log("web"));
        assert!(runs(vm.qemu) && vm.lab.runtime("web", "record.json").exists(), "{command}");
        vm.goes_on();
    }
    vm.lab.run("web");
    vm.lab.wait_state("web", "running");
    assert_eq!(vm.lab.qemu_pid("web"), vm.qemu);
    vm.lab.ok(&["stop", "web"]);
}
