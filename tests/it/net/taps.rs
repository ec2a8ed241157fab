//! Taps of running guests, in network namespaces: the filter, isolated ports, and taps that have
//! lost their bridge.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, network::Network, notes_of, runs, signal, until};
use serde_json::Value;

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const OWN: &str = "192.168.97.15";

/// A lab in a network namespace with the bridge `br0`, and a VM `web` on it.
fn bridged(image: &str, more: &str) -> Option<Lab> {
    let image = guest(image)?;
    let mut lab = Lab::new();
    lab.network = Some(Network::new()?);
    lab.vm("web", &image, more);
    Some(lab)
}

fn run(lab: &Lab, program: &str, arguments: &str) -> Output {
    let mut command = lab.network.as_ref().unwrap().command(program);
    command.args(arguments.split(' ')).output().unwrap()
}

fn ip(lab: &Lab, arguments: &str) {
    let done = run(lab, "ip", arguments);
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Returns an interface as printed by `ip`; `None` if it does not exist.
fn interface(lab: &Lab, name: &str) -> Option<Value> {
    let said = run(lab, "ip", &format!("-j -d link show dev {name}"));
    let all: Value = serde_json::from_slice(&said.stdout).ok()?;
    Some(all[0].clone())
}

fn bridge_of(lab: &Lab, tap: &str) -> Option<String> {
    interface(lab, tap)?["master"].as_str().map(str::to_owned)
}

fn isolated(lab: &Lab) -> bool {
    interface(lab, "qvm-web").unwrap()["linkinfo"]["info_slave_data"]["isolated"] == true
}

fn filtered(lab: &Lab) -> bool {
    let filters = run(lab, "tc", "filter show dev qvm-web ingress");
    String::from_utf8_lossy(&filters.stdout).contains("bpf chain 0 handle 0x1 direct-action")
}

/// The number of frames that the filter has dropped.
fn dropped(lab: &Lab) -> u64 {
    let said = run(lab, "tc", "-j -s qdisc show dev qvm-web ingress");
    let all: Value = serde_json::from_slice(&said.stdout).unwrap();
    let hook = all.as_array().unwrap().iter().find(|qdisc| qdisc["kind"] == "clsact");
    hook.unwrap()["drops"].as_u64().unwrap()
}

fn answers(lab: &Lab, address: &str) -> bool {
    run(lab, "ping", &format!("-c 1 -W 1 {address}")).status.success()
}

/// Makes the tiny guest do something, and waits for its end.
fn does(lab: &Lab, command: &str) {
    let done = lab.console("web").matches("QVM-TINY EXIT ").count();
    lab.types("web", format!("sh {command}\n").as_bytes());
    lab.says("web", "QVM-TINY EXIT ", done + 1);
}

/// The number of log lines about the VM's taps.
fn told(lab: &Lab, event: &str) -> usize {
    lab.ok(&["events", "--json", "web"]).matches(&format!("\"{event}\"")).count()
}

/// `qvm network-broker` in the lab's network, for supervisors outside of it.
struct Lender {
    child: Child,
    socket: PathBuf,
}

impl Lender {
    fn new(lab: &Lab) -> Self {
        let socket = lab.path().join("network");
        let child = lab.command(&["network-broker"]).arg(&socket).spawn().unwrap();
        until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        Self { child, socket }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `qvm` in a new, empty network namespace, with the lab's network broker.
fn apart(lab: &mut Lab, socket: &Path, arguments: &[&str]) -> Output {
    let network = lab.network.take();
    let inner = lab.command(arguments);
    lab.network = network;
    let mut command = Command::new("unshare");
    command.args(["--net", "--"]).arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.env("QVM_NETWORK", socket).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn supervisor_in_namespace_gets_host_taps() {
    let more = format!("mem = \"192M\"\nbridge = \"br0\"\nip = \"{OWN}/24\"\n[cloudInit]\n");
    let Some(mut lab) = bridged("tiny.qcow2", &more) else { return };
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    // Like under systemd: a missing broker is a fault of the host, and a retry may help.
    let nobody = apart(&mut lab, Path::new("/nowhere/network"), &["run", "web"]);
    let refusal = lab.refusal(&nobody).without_log();
    assert_eq!(refusal.exit, 75, "{}", refusal.text);
    refusal.golden("net", "no-broker");

    let lender = Lender::new(&lab);
    // The user-mode network has no connection there.
    lab.vm("user", &guest("boot.qcow2").unwrap(), "");
    let silent = apart(&mut lab, &lender.socket, &["run", "user"]);
    let refusal = lab.refusal(&silent).without_log();
    assert_eq!(refusal.code, ErrorCode::PortUnusable);
    refusal.golden("net", "no-ip-sockets");
    let started = apart(&mut lab, &lender.socket, &["start", "web"]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    lab.says("web", "QVM-TINY READY", 1);
    until("it answers", || answers(&lab, OWN));
    assert!(filtered(&lab));
    // QEMU stays in the namespace of its supervisor, and needs no user namespace for that.
    let status = lab.status("web");
    let supervisor = status["supervisorPid"].as_i64().unwrap();
    let namespace = |pid: i64, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    let qemu = i64::from(lab.qemu_pid("web"));
    assert_eq!(namespace(qemu, "net").unwrap(), namespace(supervisor, "net").unwrap());
    assert_eq!(
        namespace(qemu, "user").unwrap(),
        namespace(std::process::id().into(), "user").unwrap()
    );
    let interfaces = std::fs::read_to_string(format!("/proc/{qemu}/net/dev")).unwrap();
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
    let missing = status["isolation"]["missing"].to_string();
    assert!(!missing.contains("network"), "{status}");
    // Taps are healed and changed with the broker too.
    ip(&lab, "link set qvm-web nomaster");
    until("it is put back", || bridge_of(&lab, "qvm-web").as_deref() == Some("br0"));
    ip(&lab, "link add br1 up type bridge");
    apply(&lab, "bridge = \"br0\"", "bridge = \"br1\"");
    assert_eq!(bridge_of(&lab, "qvm-web").as_deref(), Some("br1"));
    apply(&lab, "[cloudInit]", "[cloudInit]\n[nic.more]\nbridge = \"br0\"");
    let second = run(&lab, "ip", "-o link show master br0");
    assert_eq!(second.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    // Existing taps need no broker.
    drop(lender);
    lab.ok(&["stop", "web"]);
    until("the tap is gone", || interface(&lab, "qvm-web").is_none());
}

#[test]
fn taps_are_healed_after_broker_returns() {
    let more = "bridge = \"br0\"\n[nic.two]\nbridge = \"br0\"\n[nic.three]\nbridge = \"br0\"\n";
    let Some(mut lab) = bridged("boot.qcow2", more) else { return };
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let all = |lab: &Lab| {
        let said = run(lab, "ip", "-o link show type tun");
        let said = String::from_utf8(said.stdout).unwrap();
        let names = said.lines().filter_map(|line| line.split(": ").nth(1));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let on = |lab: &Lab, taps: &[String]| {
        taps.iter().filter(|tap| bridge_of(lab, tap).as_deref() == Some("br0")).count()
    };
    let mut lender = Lender::new(&lab);
    let socket = lender.socket.clone();
    let taps = {
        let started = apart(&mut lab, &socket, &["start", "web"]);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        all(&lab)
    };
    assert_eq!((taps.len(), on(&lab, &taps)), (3, 3), "{taps:?}");
    // A hung broker is not queried again for the present taps.
    signal(lender.child.id().cast_signed(), SIGSTOP);
    taps.iter().for_each(|tap| ip(&lab, &format!("link set {tap} nomaster")));
    until("they are put back", || on(&lab, &taps) == 3);
    until("that is reported", || told(&lab, "QVM_TAP_HEALED") == 3);
    assert!(!lab.has_note("web", "taps-unattended"), "{:?}", lab.notes("web"));

    let logged =
        |lab: &Lab| std::fs::read_to_string(lab.state("web", "supervisor.log")).unwrap_or_default();
    // The next supervisor has to query it, and answers other requests meanwhile.
    let unreached = "the host's network is not reachable: ";
    let killed = |lab: &Lab| {
        let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap();
        let supervisor = i32::try_from(supervisor).unwrap();
        signal(supervisor, SIGKILL);
        until("it is gone", || !runs(supervisor));
    };
    let loses = |lab: &Lab| {
        ip(lab, "link set qvm-web nomaster");
        assert!(run(lab, "tc", "qdisc del dev qvm-web clsact").status.success());
    };
    for (what, why) in [("hangs", "no answer within 5 s"), ("is gone", "qvm-network.socket")] {
        killed(&lab);
        loses(&lab);
        let before = logged(&lab).matches(unreached).count();
        let begun = apart(&mut lab, &socket, &["start", "web"]);
        assert!(begun.status.success(), "{what}: {}", String::from_utf8_lossy(&begun.stderr));
        for _ in 0..20 {
            assert_eq!(lab.status("web")["state"], "running", "{what}");
        }
        until("it is noted", || {
            let status = lab.status("web");
            notes_of(&status).contains(&"taps-unattended".to_owned())
                && status["notes"].to_string().contains(why)
        });
        assert_eq!(bridge_of(&lab, "qvm-web"), None);
        if what == "hangs" {
            signal(lender.child.id().cast_signed(), SIGCONT);
        } else {
            // Long enough for more than one attempt.
            std::thread::sleep(std::time::Duration::from_secs(5));
            lender = Lender::new(&lab);
        }
        until("it is put back", || on(&lab, &taps) == 3 && filtered(&lab));
        until("the notes are removed", || {
            !lab.has_note("web", "taps-unattended") && !lab.has_note("web", "tap-off-bridge")
        });
        assert_eq!(logged(&lab).matches(unreached).count(), before + 1, "{}", logged(&lab));
        if what == "hangs" {
            let _ = (lender.child.kill(), lender.child.wait());
        }
    }
    lab.ok(&["kill", "web"]);
    until("the taps are gone", || interface(&lab, "qvm-web").is_none());
    drop(lender);
}

/// Replaces a line of the VM file, and applies it.
fn apply(lab: &Lab, from: &str, to: &str) {
    let text = std::fs::read_to_string(lab.file("web")).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(lab.file("web"), text.replace(from, to)).unwrap();
    lab.ok(&["apply", "web"]);
    assert_eq!(lab.status("web")["pending"], serde_json::json!([]), "{:?}", lab.notes("web"));
}

#[test]
fn frames_with_foreign_address_are_dropped() {
    let more =
        format!("mem = \"192M\"\nbridge = \"br0\"\nip = \"{OWN}/24\"\n# here\n[cloudInit]\n");
    let Some(mut lab) = bridged("tiny.qcow2", &more) else { return };
    let one = lab.run("web");
    lab.says("web", "QVM-TINY READY", 1);
    until("it answers", || answers(&lab, OWN));
    // A second address: no neighbor learns it.
    let before = dropped(&lab);
    does(
        &lab,
        "ip addr add 192.168.97.66/24 dev eth0; arping -U -c 1 -I eth0 -s 192.168.97.66 \
         192.168.97.66",
    );
    until("the kernel has dropped it", || dropped(&lab) > before);
    assert!(!answers(&lab, "192.168.97.66"));
    // Another MAC address: all its frames are dropped.
    let mac = lab.status("web")["mac"].as_str().unwrap().to_owned();
    let before = dropped(&lab);
    does(&lab, "ip link set eth0 address 52:54:00:66:66:66; ping -c 1 -W 1 192.168.97.1");
    until("the kernel has dropped it", || dropped(&lab) > before);
    let heard = String::from_utf8(run(&lab, "bridge", "fdb show br br0").stdout).unwrap();
    assert!(heard.contains(&mac) && !heard.contains("52:54:00:66:66:66"), "{heard}");
    // The VM file disables the filter of the running guest, and enables it again.
    apply(&lab, "# here", "antiSpoof = false");
    until("it may", || answers(&lab, "192.168.97.66"));
    apply(&lab, "antiSpoof = false", "# here");
    assert!(filtered(&lab) && !answers(&lab, OWN));
    does(&lab, &format!("ip link set eth0 address {mac}"));
    until("it is itself again", || answers(&lab, OWN));
    // The bridge is deleted and created again: the guest is connected again, with the same filter.
    ip(&lab, "link del br0");
    until("that is reported", || lab.has_note("web", "tap-off-bridge"));
    ip(&lab, "link add br0 type bridge");
    ip(&lab, "addr add 192.168.97.1/24 dev br0");
    ip(&lab, "link set br0 up");
    until("it answers behind the new bridge", || answers(&lab, OWN));
    assert!(filtered(&lab) && !answers(&lab, "192.168.97.66"));
    until("that is reported too", || told(&lab, "QVM_TAP_HEALED") == 1);
    assert!(!lab.has_note("web", "tap-off-bridge"), "{:?}", lab.notes("web"));
    // Both are killed at once: no tap remains.
    let (supervisor, qemu) = (lab.supervisor(one).id().cast_signed(), lab.qemu_pid("web"));
    signal(qemu, SIGKILL);
    signal(supervisor, SIGKILL);
    lab.exit_code(one);
    until("QEMU is gone", || !runs(qemu));
    until("the tap is gone", || interface(&lab, "qvm-web").is_none());
    let qdiscs = String::from_utf8(run(&lab, "tc", "qdisc show").stdout).unwrap();
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
}

#[test]
fn detached_tap_follows_tap_heal() {
    let more = "tapHeal = \"heal\"\n[nic.net]\nbridge = \"br0\"\nisolated = true\nmtu = 1400\n";
    let Some(mut lab) = bridged("boot.qcow2", more) else { return };
    let one = lab.run("web");
    lab.wait_state("web", "running");
    let is_on = |lab: &Lab, bridge: &str| bridge_of(lab, "qvm-web").as_deref() == Some(bridge);
    assert!(is_on(&lab, "br0") && isolated(&lab) && filtered(&lab));
    // Detached repeatedly.
    for count in 1..=3 {
        ip(&lab, "link set qvm-web nomaster");
        until("it is back", || is_on(&lab, "br0") && told(&lab, "QVM_TAP_HEALED") == count);
        assert!(isolated(&lab) && filtered(&lab));
        assert_eq!(told(&lab, "QVM_TAP_LOST"), count);
    }
    // Many other interfaces come and go: no message about them wakes the supervisor.
    let wake_ups = |pid: i32| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    let supervisor = lab.supervisor(one).id().cast_signed();
    let before = wake_ups(supervisor);
    let others = "for n in $(seq 100); do ip link add o$n type veth peer name p$n; \
                  ip link set o$n master br0 up; ip link del o$n; done";
    let mut sh = lab.network.as_ref().unwrap().command("sh");
    assert!(sh.args(["-c", others]).status().unwrap().success());
    let woken = wake_ups(supervisor) - before;
    assert!(woken < 50, "{woken} wake-ups");
    // Isolation of a running guest.
    apply(&lab, "isolated = true", "isolated = false");
    assert!(!isolated(&lab));
    apply(&lab, "isolated = false", "isolated = true");
    assert!(isolated(&lab) && is_on(&lab, "br0"));
    // A change of the bridge by the VM file is no loss; a manual one is.
    ip(&lab, "link add br1 up type bridge");
    apply(&lab, "bridge = \"br0\"", "bridge = \"br1\"");
    assert!(is_on(&lab, "br1") && isolated(&lab));
    assert_eq!(told(&lab, "QVM_TAP_LOST"), 3);
    ip(&lab, "link set qvm-web master br0");
    until("that is reported", || told(&lab, "QVM_TAP_LOST") == 4);
    assert!(lab.has_note("web", "tap-off-bridge"), "{:?}", lab.notes("web"));
    assert!(is_on(&lab, "br0"));
    ip(&lab, "link set qvm-web master br1");
    until("that is reported", || told(&lab, "QVM_TAP_HEALED") == 4);
    assert!(!lab.has_note("web", "tap-off-bridge"), "{:?}", lab.notes("web"));
    // The tap was detached while no supervisor ran.
    signal(supervisor, SIGKILL);
    assert_eq!(lab.exit_code(one), None);
    ip(&lab, "link del br1");
    ip(&lab, "link add br1 up type bridge");
    assert_eq!(bridge_of(&lab, "qvm-web"), None);
    assert!(run(&lab, "tc", "qdisc del dev qvm-web clsact").status.success());
    let two = lab.run("web");
    until("the next supervisor puts it back", || is_on(&lab, "br1") && filtered(&lab));
    assert!(isolated(&lab));
    until("that is reported", || told(&lab, "QVM_TAP_HEALED") == 1);
    // Only reported, and then not even that.
    apply(&lab, "tapHeal = \"heal\"", "tapHeal = \"report\"");
    ip(&lab, "link set qvm-web nomaster");
    until("that is reported", || told(&lab, "QVM_TAP_LOST") == 2);
    assert!(lab.has_note("web", "tap-off-bridge"), "{:?}", lab.notes("web"));
    assert_eq!(bridge_of(&lab, "qvm-web"), None);
    apply(&lab, "tapHeal = \"report\"", "tapHeal = \"off\"");
    until("the note is removed", || !lab.has_note("web", "tap-off-bridge"));
    assert_eq!(bridge_of(&lab, "qvm-web"), None);
    apply(&lab, "tapHeal = \"off\"", "tapHeal = \"heal\"");
    until("it is back", || is_on(&lab, "br1"));
    // A deleted tap cannot be restored.
    ip(&lab, "link del qvm-web");
    let is_deleted = || lab.status("web")["notes"].to_string().contains("deleted");
    until("that is reported", is_deleted);
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(two), Some(0));
    assert!(!lab.log("web").contains("panicked"));
}

#[test]
#[ignore = "make test-faults"]
fn isolated_guests_cannot_reach_each_other() {
    let more = "mem = \"192M\"\nbridge = \"br0\"\nip = \"192.168.97.15/24\"\n[nic.net]\n\
                isolated = true\n[cloudInit]\n";
    let Some(mut lab) = bridged("tiny.qcow2", more) else { return };
    let more = more.replace("97.15", "97.16");
    lab.vm("db", &guest("tiny.qcow2").unwrap(), &more);
    let _ = (lab.run("web"), lab.run("db"));
    lab.says("web", "QVM-TINY READY", 1);
    lab.says("db", "QVM-TINY READY", 1);
    until("both answer the host", || answers(&lab, OWN) && answers(&lab, "192.168.97.16"));
    let pings = |lab: &Lab| {
        does(lab, "ping -c 1 -W 2 192.168.97.16 >/dev/null");
        lab.console("web").trim_end().ends_with("EXIT 0")
    };
    assert!(!pings(&lab));
    apply(&lab, "isolated = true", "isolated = false");
    until("one of them is enough", || pings(&lab));
}

#[test]
fn host_without_filter_is_reported_or_refused() {
    let Some(mut lab) = bridged("boot.qcow2", "bridge = \"br0\"\n# here\n") else { return };
    // A tap of root whose place for the filter is taken by another filter.
    for set_up in [
        "ip tuntap add qvm-web mode tap",
        "tc qdisc add dev qvm-web clsact",
        "tc filter add dev qvm-web ingress prio 4242 protocol all u32 match u32 0 0 classid 1:1",
    ] {
        let (program, arguments) = set_up.split_once(' ').unwrap();
        assert!(run(&lab, program, arguments).status.success(), "{set_up}");
    }
    let one = lab.run("web");
    lab.wait_state("web", "running");
    until("it is reported", || lab.has_note("web", "no-effect antiSpoof"));
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
    let text = std::fs::read_to_string(lab.file("web")).unwrap();
    std::fs::write(lab.file("web"), text.replace("# here", "antiSpoof = true")).unwrap();
    let refused = |lab: &Lab, code: ErrorCode, section: &str| {
        let refusal = lab.refused(&["run", "web"]).without_log();
        refusal.is(code, 75).golden("net", section);
    };
    refused(&lab, ErrorCode::FilterFailed, "filter-refused");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root's VMs can be strict");
        return;
    }
    // Strict isolation requires the filter, except with `antiSpoof = false`.
    let strict = format!("isolation = \"strict\"\n{text}");
    std::fs::write(lab.file("web"), &strict).unwrap();
    refused(&lab, ErrorCode::IsolationIncomplete, "strict-without-filter");
    std::fs::write(lab.file("web"), strict.replace("# here", "antiSpoof = false")).unwrap();
    let one = lab.run("web");
    lab.wait_state("web", "running");
    lab.ok(&["kill", "web"]);
    assert_eq!(lab.exit_code(one), Some(0));
}

#[test]
fn stopping_vm_loses_no_tap() {
    let Some(mut lab) = bridged("boot.qcow2", "bridge = \"br0\"\n") else { return };
    for stop in ["kill", "stop"] {
        let one = lab.run("web");
        lab.wait_state("web", "running");
        assert!(filtered(&lab));
        lab.ok(&[stop, "web"]);
        assert_eq!(lab.exit_code(one), Some(0));
    }
    assert!(!lab.log("web").contains("not on its bridge"), "{}", lab.log("web"));
}
