//! Access to a guest: its addresses and their sources, readiness, the seed, pending changes.

use std::path::Path;

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, network::Network};

fn failed(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.qvm(arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn agent_reports_addresses_and_ends_wait() {
    let Some(image) = guest("tiny.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "mem = \"256M\"\n");
    lab.ok(&["wait", "web", "--for", "stopped"]);
    let refusal = lab.refused(&["wait", "web", "--for", "running", "--timeout", "1"]);
    refusal.is(ErrorCode::WaitTimeout, 1).golden("net", "wait-timeout");
    lab.refused(&["ip", "web"]).is(ErrorCode::NotRunning, 3);
    lab.ok(&["start", "web"]);
    lab.ok(&["wait", "web", "--for", "running", "--timeout", "60"]);
    lab.ok(&["wait", "web", "--for", "ready", "--timeout", "60"]);
    lab.ok(&["wait", "web", "--for", "agent", "--timeout", "120"]);
    // The guest starts DHCP after the agent.
    crate::lab::until("it has its address", || lab.ok(&["ip", "web"]).starts_with("10.0.2.15 "));
    let told = lab.ok(&["ip", "web"]);
    assert!(told.lines().next().unwrap().ends_with("  guest agent, eth0"), "{told}");
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["ip", "--json", "web"])).unwrap();
    let first =
        serde_json::json!({ "address": "10.0.2.15", "interface": "eth0", "source": "agent" });
    assert_eq!(json[0], first);
    let mut wait =
        lab.command(&["wait", "web", "--for", "stopped", "--timeout", "120"]).spawn().unwrap();
    lab.ok(&["stop", "web"]);
    assert!(wait.wait().unwrap().success());
    lab.refused(&["wait", "unknown", "--for", "stopped"]).is(ErrorCode::VmNotFound, 3);
}

#[test]
fn addresses_without_agent() {
    let Some(image) = guest("boot.qcow2") else { return };
    let Some(network) = Network::new() else { return };
    let mut lab = Lab::new();
    lab.network = Some(network);
    let mac = "mac = \"52:54:00:61:90:15\"\nbridge = \"br0\"\n";
    lab.vm("web", &image, mac);
    lab.vm("db", &image, "bridge = \"br0\"\nip = \"192.168.97.20/24\"\n[cloudInit]\n");
    lab.ok(&["start", "web", "db"]);
    assert_eq!(lab.ok(&["ip", "db"]), "192.168.97.20  VM file\n");
    lab.refused(&["ip", "web"]).is(ErrorCode::NoAddress, 3).golden("net", "no-address");
    // The host learns the address from an ARP request of the guest.
    let network = lab.network.as_ref().unwrap();
    for neighbour in
        ["192.168.97.77 lladdr 52:54:00:61:90:15", "192.168.97.78 lladdr 52:54:00:61:90:16"]
    {
        let mut ip = network.command("ip");
        ip.args(["neigh", "add"]).args(neighbour.split(' ')).args(["dev", "br0"]);
        assert!(ip.status().unwrap().success());
    }
    assert_eq!(lab.ok(&["ip", "web"]), "192.168.97.77  neighbour table\n");
    lab.ok(&["kill", "web", "db"]);
}

#[test]
fn printed_seed_equals_the_guests() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm(
        "web",
        &image,
        "ip = \"10.0.2.20/24\"\n[cloudInit]\nhostname = \"dev\"\nuser = \"op\"\n",
    );
    lab.vm("bare", &image, "");
    let all = lab.ok(&["seed", "web"]);
    let heads: Vec<&str> = all.lines().filter(|line| line.starts_with("--- ")).collect();
    assert_eq!(heads, ["--- meta-data", "--- user-data", "--- network-config"]);
    assert!(all.contains("\n#cloud-config\n") && all.contains("10.0.2.20/24"), "{all}");
    let user_data = lab.ok(&["seed", "--document", "user-data", "web"]);
    assert!(user_data.starts_with("#cloud-config\n"), "{user_data}");
    // The files were not touched; a later write has the same content.
    assert!(!lab.state("web", "").exists());
    lab.ok(&["start", "web"]);
    let seed = std::fs::read(lab.state("web", "seed.iso")).unwrap();
    let found = seed.windows(user_data.len()).any(|bytes| bytes == user_data.as_bytes());
    assert!(found, "the seed has other user-data");
    lab.refused(&["seed", "bare"]).is(ErrorCode::NoSeed, 3).golden("net", "no-seed");
    lab.ok(&["kill", "web"]);
}

#[test]
fn differences_have_key_and_effect() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.vm("db", &image, "");
    lab.ok(&["start", "web"]);
    assert_eq!(lab.ok(&["diff"]), "");
    lab.vm("web", &image, "vcpu = 2\ncpuWeight = 50\n");
    crate::lab::until("the supervisor has seen it", || !lab.ok(&["diff", "web"]).is_empty());
    assert_eq!(
        lab.ok(&["diff"]),
        "web: cpuWeight: 100 -> 50, at `qvm apply`\nweb: vcpu: 1 -> 2, when the guest reboots\n"
    );
    let json: serde_json::Value = serde_json::from_str(&lab.ok(&["diff", "--json"])).unwrap();
    assert_eq!(json[0]["pending"][1]["takesEffect"], "next-reboot");
    std::fs::write(lab.file("web"), "vcpu = \n").unwrap();
    crate::lab::until("the file is seen to be invalid", || {
        lab.ok(&["diff"]).contains("web: the VM file is no longer valid")
    });
    assert_eq!(failed(&lab, &["diff", "db"]).0, Some(3));
    lab.ok(&["kill", "web"]);
}

#[test]
fn installed_qemu_is_pending_until_reboot() {
    let Some(image) = guest("boot.qcow2") else { return };
    let mut lab = Lab::new();
    let found = std::process::Command::new("sh")
        .args(["-c", "readlink -f \"$(command -v qemu-system-x86_64)\""])
        .output()
        .unwrap();
    let installed = String::from_utf8(found.stdout).unwrap();
    // QEMU 7.2 searches for its modules and firmware beside the directory of its program.
    let own = lab.path().join("bin/qemu-system-x86_64");
    std::fs::create_dir(lab.path().join("bin")).unwrap();
    for dir in ["lib", "share"] {
        std::os::unix::fs::symlink(Path::new("/usr").join(dir), lab.path().join(dir)).unwrap();
    }
    crate::lab::copy_program(installed.trim(), &own);
    lab.qemu = Some(own.clone().into());
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    let before = lab.qemu_pid("web");
    assert_eq!(lab.ok(&["diff"]), "");
    // Like a package manager.
    let new = lab.path().join("bin/qemu-system-x86_64.new");
    crate::lab::copy_program(installed.trim(), &new);
    std::fs::rename(&new, &own).unwrap();
    crate::lab::until("it is seen", || lab.ok(&["diff", "web"]).contains(", another build"));
    let told = lab.ok(&["diff", "web"]);
    assert!(
        told.starts_with("web: qemu: ") && told.ends_with(", when the guest reboots\n"),
        "{told}"
    );
    lab.ok(&["reboot", "web"]);
    crate::lab::until("it runs", || lab.status("web")["pending"] == serde_json::json!([]));
    lab.wait_state("web", "running");
    assert_ne!(lab.qemu_pid("web"), before);
    lab.ok(&["kill", "web"]);
}

#[test]
fn reseed_repeats_first_boot() {
    let Some(image) = guest("boot.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "[cloudInit]\nuser = \"op\"\n");
    lab.vm("bare", &image, "");
    lab.refused(&["reseed", "web"]).is(ErrorCode::NeverRun, 3);
    lab.refused(&["reseed", "bare"]).is(ErrorCode::NoSeed, 1).golden("net", "reseed-without-seed");
    lab.ok(&["start", "web"]);
    // A changed seed alone does not reboot: the consequences are reported.
    lab.vm("web", &image, "[cloudInit]\nuser = \"admin\"\n");
    crate::lab::until("it is seen", || !lab.ok(&["diff", "web"]).is_empty());
    assert_eq!(
        lab.ok(&["diff"]),
        "web: cloudInit.user: op -> admin, when cloud-init runs again (`qvm reseed`), \
         which repeats: users_groups\n"
    );
    let instance = |lab: &Lab| {
        let seed = lab.ok(&["seed", "--document", "meta-data", "web"]);
        seed.lines().find(|line| line.starts_with("instance-id: ")).unwrap().to_owned()
    };
    let before = instance(&lab);
    let told = lab.ok(&["reseed", "web"]);
    assert!(told.contains("when the guest reboots"), "{told}");
    assert_ne!(instance(&lab), before);
    let pending = lab.ok(&["diff", "web"]);
    assert!(pending.contains("web: instance-id: "), "{pending}");
    let qemu = lab.qemu_pid("web");
    lab.ok(&["reboot", "web"]);
    crate::lab::until("another QEMU has it", || {
        let status = lab.status("web");
        status["state"] == "running" && status["pending"] == serde_json::json!([])
    });
    assert_ne!(lab.qemu_pid("web"), qemu);
    let seed = std::fs::read(lab.state("web", "seed.iso")).unwrap();
    let new = instance(&lab);
    assert!(seed.windows(new.len()).any(|bytes| bytes == new.as_bytes()));
    lab.ok(&["kill", "web"]);
}
