//! VMs on bridges, in network namespaces: the guest is reachable, and no tap outlives its QEMU,
//! regardless of how processes end.

use std::process::Output;

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, network::Network, runs, signal, until};

const SIGKILL: i32 = 9;

/// A lab in a network namespace with the bridge `br0`.
fn bridged() -> Option<Lab> {
    guest("boot.qcow2")?;
    let mut lab = Lab::new();
    lab.network = Some(Network::new()?);
    Some(lab)
}

fn ip(lab: &Lab, arguments: &str) -> Output {
    let mut command = lab.network.as_ref().unwrap().command("ip");
    command.args(arguments.split(' ')).output().unwrap()
}

/// Returns an interface as printed by `ip`; `None` if it does not exist.
fn interface(lab: &Lab, name: &str) -> Option<serde_json::Value> {
    let said = ip(lab, &format!("-j -d link show dev {name}"));
    let all: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
    Some(all[0].clone())
}

fn answers(lab: &Lab, address: &str) -> bool {
    let mut ping = lab.network.as_ref().unwrap().command("ping");
    ping.args(["-c", "1", "-W", "2", address]).output().unwrap().status.success()
}

#[test]
fn guest_is_reachable_after_supervisor_crash() {
    let (Some(image), Some(mut lab)) = (guest("tiny.qcow2"), bridged()) else { return };
    let more = "bridge = \"br0\"\nip = \"192.168.97.15/24\"\ngateway = \"192.168.97.1\"\n";
    lab.vm("web", &image, &format!("mem = \"192M\"\n{more}"));
    let text = std::fs::read_to_string(lab.file("web")).unwrap();
    std::fs::write(lab.file("web"), format!("{text}[cloudInit]\n")).unwrap();
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    until("it answers", || answers(&lab, "192.168.97.15"));
    let tap = interface(&lab, "qvm-web").unwrap();
    assert_eq!((&tap["master"], &tap["ifalias"]), (&"br0".into(), &"qvm:web:net".into()));
    assert_eq!(lab.status("web")["tap"], "qvm-web");
    let qemu = lab.qemu_pid("web");
    signal(lab.supervisor(one).id().cast_signed(), SIGKILL);
    assert_eq!(lab.exit_code(one), None);
    until("it answers without a supervisor", || answers(&lab, "192.168.97.15"));
    let two = lab.run("web");
    lab.wait_state("web", "running");
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert!(answers(&lab, "192.168.97.15"));
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
    assert_eq!(interface(&lab, "qvm-web"), None);
}

#[test]
fn no_tap_outlives_its_qemu() {
    let (Some(image), Some(mut lab)) = (guest("boot.qcow2"), bridged()) else { return };
    lab.vm("web", &image, "bridge = \"br0\"\n");
    type Death = fn(&Lab, i32, i32);
    let deaths: [(&str, Death); 6] = [
        ("a clean stop", |lab, _, _| drop(lab.ok(&["stop", "web"]))),
        ("the guest's own", |lab, _, _| lab.types("web", b"p")),
        ("a forced one", |lab, _, _| drop(lab.ok(&["kill", "web"]))),
        ("QEMU's", |_, _, qemu| signal(qemu, SIGKILL)),
        ("the supervisor's, then QEMU's", |lab, supervisor, qemu| {
            signal(supervisor, SIGKILL);
            until("the supervisor is gone", || !runs(supervisor));
            assert!(interface(lab, "qvm-web").is_some(), "the tap is QEMU's");
            signal(qemu, SIGKILL);
        }),
        ("both at once", |_, supervisor, qemu| {
            signal(qemu, SIGKILL);
            signal(supervisor, SIGKILL);
        }),
    ];
    for (count, (death, kill)) in deaths.iter().enumerate() {
        let one = lab.run("web");
        lab.says("web", "BOOT-GUEST-READY", count + 1);
        lab.wait_state("web", "running");
        assert_eq!(interface(&lab, "qvm-web").unwrap()["master"], "br0", "{death}");
        let (supervisor, qemu) = (lab.supervisor(one).id().cast_signed(), lab.qemu_pid("web"));
        kill(&lab, supervisor, qemu);
        lab.exit_code(one);
        until("QEMU is gone", || !runs(qemu));
        until(&format!("the tap goes with {death} death"), || interface(&lab, "qvm-web").is_none());
    }
}

#[test]
fn vm_on_two_bridges_has_two_taps() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), bridged()) else { return };
    assert!(ip(&lab, "link add br1 mtu 1400 up type bridge").status.success());
    let more = "bridge = \"br0\"\n[nic.lan]\nbridge = \"br1\"\n[nic.san]\nbridge = \"br1\"\n\
                tap = \"san0\"\nmtu = 1300\n";
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    for (tap, bridge, mtu) in
        [("qvm-web", "br0", 1500), ("qvm-web_lan", "br1", 1400), ("san0", "br1", 1400)]
    {
        let seen = interface(&lab, tap).unwrap();
        assert_eq!((&seen["master"], &seen["mtu"]), (&bridge.into(), &mtu.into()), "{tap}");
    }
    lab.ok(&["kill", "web"]);
    for tap in ["qvm-web", "qvm-web_lan", "san0"] {
        assert_eq!(interface(&lab, tap), None);
    }
}

fn mtu(lab: &Lab, name: &str) -> serde_json::Value {
    interface(lab, name).map_or(serde_json::Value::Null, |seen| seen["mtu"].clone())
}

#[test]
fn mtu_of_vm_leaves_bridge_alone() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), bridged()) else { return };
    for set_up in [
        "link add p0 mtu 9000 up type veth peer name p1",
        "link add br1 up type bridge",
        "link set p0 master br1",
    ] {
        assert!(ip(&lab, set_up).status.success());
    }
    assert_eq!(mtu(&lab, "br1"), 9000);
    lab.vm("web", &image, "bridge = \"br0\"\n[nic.lan]\nbridge = \"br1\"\nmtu = 1400\n");
    lab.ok(&["start", "web"]);
    assert_eq!((mtu(&lab, "br1"), mtu(&lab, "qvm-web_lan")), (9000.into(), 9000.into()));
    let arguments = std::fs::read(format!("/proc/{}/cmdline", lab.qemu_pid("web"))).unwrap();
    assert!(String::from_utf8_lossy(&arguments).contains("\"host_mtu\":1400"));
    assert_eq!(lab.notes("web"), [""; 0]);

    // The same for a NIC that is plugged into a running guest.
    let text = std::fs::read_to_string(lab.file("web")).unwrap();
    let more = "[nic.more]\nbridge = \"br1\"\nmtu = 1300\n";
    std::fs::write(lab.file("web"), format!("{text}{more}")).unwrap();
    let told = lab.ok(&["apply", "web"]);
    assert!(told.contains("applied: nic.more: "), "{told}");
    assert_eq!((mtu(&lab, "br1"), mtu(&lab, "qvm-web_more")), (9000.into(), 9000.into()));

    // Attached again to the bridge, and to one that was created again.
    let on_bridge = || interface(&lab, "qvm-web_lan").unwrap()["master"] == "br1";
    assert!(ip(&lab, "link set qvm-web_lan nomaster").status.success());
    until("the tap is back", on_bridge);
    assert_eq!(mtu(&lab, "br1"), 9000);
    assert!(ip(&lab, "link del br1").status.success());
    assert!(ip(&lab, "link add br1 up type bridge").status.success());
    until("the tap is back", on_bridge);
    until("the other is back", || interface(&lab, "qvm-web_more").unwrap()["master"] == "br1");
    assert!(ip(&lab, "link set p0 master br1").status.success());
    assert_eq!(mtu(&lab, "br1"), 9000);

    lab.ok(&["kill", "web"]);
    assert_eq!(mtu(&lab, "br1"), 9000);
}

#[test]
fn bridge_that_drops_frames_is_noted() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), bridged()) else { return };
    let set = |words: &str| assert!(ip(&lab, &format!("link set br0 {words}")).status.success());
    lab.vm("web", &image, "[nic.lan]\nbridge = \"br0\"\nmtu = 9000\n");
    set("down");
    let started = lab.qvm(&["start", "web"]);
    lab.golden("net", "start-with-notes", &String::from_utf8_lossy(&started.stdout));
    assert_eq!(mtu(&lab, "qvm-web_lan"), 1500);
    assert_eq!(lab.notes("web"), ["bridge-down", "bridge-mtu mtu"]);
    set("up");
    until("only the MTU is noted", || lab.notes("web") == ["bridge-mtu mtu"]);
    set("mtu 9000");
    until("nothing is noted", || lab.notes("web").is_empty());
    set("down");
    until("the bridge is noted", || lab.has_note("web", "bridge-down"));
    set("up");
    until("nothing is noted", || lab.notes("web").is_empty());
    lab.ok(&["kill", "web"]);
    // Without healing too.
    lab.vm("web", &image, "tapHeal = \"off\"\nbridge = \"br0\"\n");
    set("down");
    lab.ok(&["start", "web"]);
    assert!(lab.has_note("web", "bridge-down"), "{:?}", lab.notes("web"));
    set("up");
    until("nothing is noted", || lab.notes("web").is_empty());
    lab.ok(&["kill", "web"]);
}

#[test]
fn network_errors_have_line_and_hint() {
    let (Some(image), Some(lab)) = (guest("boot.qcow2"), bridged()) else { return };
    for set_up in [
        "link add dummy0 type veth peer name dummy1",
        "link add qvm-db type veth peer name x1",
        "tuntap add qvm-mq mode tap multi_queue",
    ] {
        assert!(ip(&lab, set_up).status.success());
    }
    for (name, bridge, code, section) in [
        ("web", "br9", ErrorCode::BridgeMissing, "bridge-missing"),
        ("web", "dummy0", ErrorCode::NotABridge, "not-a-bridge"),
        ("db", "br0", ErrorCode::TapInUse, "tap-in-use"),
        ("mq", "br0", ErrorCode::TapMultiQueue, "tap-multi-queue"),
    ] {
        lab.vm(name, &image, &format!("bridge = \"{bridge}\"\n"));
        let output = lab.qvm(&["run", name]);
        // The VM has no fault: systemd may retry.
        lab.refusal(&output).without_log().is(code, 75).golden("net", section);
        assert_eq!(interface(&lab, "qvm-web"), None);
    }
    // A running VM is named as such.
    lab.vm("web", &image, "bridge = \"br0\"\n");
    lab.ok(&["start", "web"]);
    lab.vm("api", &image, "[nic.net]\nbridge = \"br0\"\ntap = \"qvm-web\"\n");
    let refusal = lab.refused(&["run", "api"]).without_log();
    refusal.is(ErrorCode::TapInUse, 75).golden("net", "tap-of-another-vm");
    lab.ok(&["kill", "web"]);
}
