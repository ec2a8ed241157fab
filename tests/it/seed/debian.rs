//! A Debian cloud image on a bridge: cloud-init applies the VM file once.

use std::{collections::BTreeMap, fs, process::Command};

use crate::lab::{Lab, guest, long, network::Network};

/// The query of the guest, in one call because a process takes 0.1 s there: lines `KEY=VALUE`.
const FACTS: &str = r#"
say() { echo "$1=$2"; }
result() {
    python3 -c 'import json, sys; print(json.load(sys.stdin)["v1"][sys.argv[1]])' "$1" \
        < /run/cloud-init/result.json
}
say errors "$(result errors)"
say source "$(result datasource)"
say hostname "$(hostname)"
say user "$(id -un op)"
say sudo "$(sudo -u op sudo -n id -u)"
say keys "$(cat ~op/.ssh/authorized_keys)"
say addresses "$(ip -4 -o addr show scope global | awk '{ print $4 }' | tr '\n' ' ')"
say route "$(ip route show default)"
say mac "$(cat /sys/class/net/e*/address)"
say root "$(df -B1 --output=size / | tail -n1)"
say instance "$(readlink /var/lib/cloud/instance)"
say once "$(stat -c '%n %y' /var/lib/cloud/instance/sem/* | sha256sum)"
say host-key "$(cat /etc/ssh/ssh_host_ed25519_key.pub)"
say boot "$(cat /proc/sys/kernel/random/boot_id)"
"#;

/// Waits for the agent and for the end of cloud-init; returns the output of the guest.
fn facts(lab: &Lab) -> BTreeMap<String, String> {
    lab.until_guest("web", "the guest agent answers", || {
        lab.qvm(&["exec", "web", "--", "true"]).status.success()
    });
    let waited = ["exec", "--timeout", "1200", "web", "--", "cloud-init", "status", "--wait"];
    let said = lab.ok(&waited);
    assert!(said.contains("status: done"), "{said}\n{}", lab.console("web"));
    let facts = lab.ok(&["exec", "web", "--", "sh", "-c", FACTS]);
    let pairs = facts.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn cloud_init_runs_once() {
    let Some(image) = guest("debian-12.qcow2") else { return };
    let Some(network) = Network::new() else { return };
    let mut lab = Lab::new();
    lab.network = Some(network);
    let key = lab.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "op@desk", "-f"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let public = public.trim();
    lab.vm(
        "web",
        &image,
        &format!(
            "vcpu = 2\nmem = \"1G\"\ndiskSizeG = 4\nbridge = \"br0\"\n\
             mac = \"52:54:00:61:90:15\"\nip = \"192.168.97.15/24\"\ngateway = \"192.168.97.1\"\n\
             [cloudInit]\nhostname = \"dev\"\nuser = \"op\"\nsshAuthorizedKeys = [\"{public}\"]\n"
        ),
    );
    lab.ok(&["start", "web"]);
    assert_eq!(lab.status("web")["tap"], "qvm-web");
    let first = facts(&lab);
    for (key, value) in [
        ("errors", "[]"),
        ("hostname", "dev"),
        ("user", "op"),
        ("sudo", "0"),
        ("keys", public),
        ("addresses", "192.168.97.15/24"),
        ("mac", "52:54:00:61:90:15"),
    ] {
        assert_eq!(first[key], value, "{key}\n{first:#?}");
    }
    assert!(first["source"].starts_with("DataSourceNoCloud"), "{first:#?}");
    assert!(first["route"].starts_with("default via 192.168.97.1 "), "{first:#?}");
    let identity = fs::read_to_string(lab.state("web", "identity.toml")).unwrap();
    let identity: toml::Table = toml::from_str(&identity).unwrap();
    let instance = identity["instanceId"].as_str().unwrap();
    assert_eq!(first["instance"], format!("/var/lib/cloud/instances/{instance}"));
    // Of 4 GiB, the boot partition and the reserved blocks of ext4 are not available for files.
    let root: u64 = first["root"].parse().unwrap();
    assert!(root > 3 << 30, "the root file system has {root} bytes");

    // Over the bridge, with the key of the VM file.
    let known = lab.path().join("known_hosts");
    let ssh = |lab: &Lab, command: &str| {
        let mut ssh = lab.network.as_ref().unwrap().command("ssh");
        ssh.arg("-i").arg(&key).args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=300"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
        ssh.args(["-o", "StrictHostKeyChecking=accept-new", "op@192.168.97.15", command]);
        let output = ssh.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ssh(&lab, "hostname && sudo -n id -u"), "dev\n0\n");
    // By the VM's name, as the user of the VM file.
    let options = [
        format!("-oIdentityFile={}", key.display()),
        "-oBatchMode=yes".into(),
        "-oStrictHostKeyChecking=accept-new".into(),
        format!("-oUserKnownHostsFile={}", known.display()),
    ];
    let mut words = vec!["ssh", "web", "--"];
    words.extend(options.iter().map(String::as_str));
    words.push("id -un");
    assert_eq!(lab.ok(&words), "op\n");
    assert!(lab.ok(&["ip", "web"]).starts_with("192.168.97.15 "));

    // The received part of a command's output is freed: this command ends when that is so.
    let large = "exec 3>&1; head -c 24M /dev/zero; \
                 while [ $(stat -L -c %b /proc/self/fd/3) -gt 20480 ]; do sleep 0.2; done";
    assert_eq!(
        lab.ok(&["exec", "--timeout", "1200", "web", "--", "sh", "-c", large]).len(),
        24 << 20
    );
    // The root file system of a complete system with systemd.
    lab.ok(&["fsfreeze", "web", "--", "true"]);
    lab.ok(&["exec", "web", "--", "sh", "-c", "echo still here >/root/file && sync"]);
    lab.ok(&["cp", "web:/root/file", lab.path().join("file").to_str().unwrap()]);
    assert_eq!(fs::read_to_string(lab.path().join("file")).unwrap(), "still here\n");
    lab.ok(&["fsfreeze", "web", "--thaw-after", "600"]);

    assert!(lab.ok(&["stop", "web"]).contains("guest has shut down"));
    assert_eq!(lab.last_reason("web"), "stopped");

    if !long() {
        return;
    }
    // The same instance: cloud-init does not repeat its per-instance steps, and the host key is
    // unchanged.
    lab.ok(&["start", "web"]);
    let mut second = facts(&lab);
    assert_ne!(first["boot"], second["boot"]);
    second.insert("boot".into(), first["boot"].clone());
    assert_eq!(first, second);
    assert_eq!(ssh(&lab, "hostname"), "dev\n");
    lab.ok(&["kill", "web"]);
}
