//! The differences between a running VM and its VM file: one row for each key, with exactly the
//! JSON of `status`. `QVM_BLESS=1 cargo test --test it machine::vm_diff` rewrites them; review the
//! difference before committing it.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use qvm::{
    machine::diff::{Facts, ScreenServer, VmDiff, running_machine::Versions},
    spec::{self, Vm},
};

/// The key of a row, the running VM file, and the current one.
type Row = (&'static str, &'static str, &'static str);

const HEX: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// At least one row for each key of the reference.
const KEYS: &[Row] = &[
    ("description", "", "description = \"web\""),
    ("description", "description = \"a\"", "description = \"b\""),
    ("autostart", "", "autostart = true"),
    ("after", "", "after = [\"db\", \"cache\"]"),
    ("vcpu", "", "vcpu = 4"),
    ("vcpu", "onGuestReboot = \"reset\"", "onGuestReboot = \"reset\"\nvcpu = 4"),
    ("mem", "mem = \"2G\"", "mem = 1024"),
    ("mem", "mem = \"2G\"", "mem = \"4G\""),
    ("cpuWeight", "", "cpuWeight = 200"),
    ("cpuQuota", "", "cpuQuota = 150"),
    ("cpuQuota", "cpuQuota = 150", ""),
    ("cpu.pin", "", "[cpu]\npin = [\"0-1\"]"),
    ("memoryMax", "", "memoryMax = \"3G\""),
    ("ioWeight", "", "ioWeight = 50"),
    ("oomScoreAdjust", "", "oomScoreAdjust = -500"),
    ("ready", "", "ready = \"agent\""),
    ("readyTimeoutSec", "", "readyTimeoutSec = 60"),
    ("readyFailure", "", "readyFailure = \"fail\""),
    ("hostShutdown", "", "hostShutdown = \"suspend\""),
    ("shutdownTimeoutSec", "", "shutdownTimeoutSec = 300"),
    ("accel", "", "accel = \"tcg\""),
    ("firmware", "", "firmware = \"uefi-secure\""),
    ("operators", "", "operators = [\"alice\", \"@admins\"]"),
    ("operators", "operators = [\"alice\"]", ""),
    ("isolation", "", "isolation = \"off\""),
    ("onPanic", "", "onPanic = \"pause\""),
    ("onGuestReboot", "", "onGuestReboot = \"reset\""),
    ("tapHeal", "", "tapHeal = \"report\""),
    ("diskSizeG", "", "diskSizeG = 2"),
    ("diskSizeG", "diskSizeG = 2", ""),
    ("diskSizeG", "diskSizeG = 2", "diskSizeG = 3"),
    ("diskSizeG", "diskSizeG = 3", "diskSizeG = 2"),
    (
        "image.url",
        "image.url = \"https://a/x\"\nimage.sha256 = \"HEX\"",
        "image.url = \"https://b/x\"\nimage.sha256 = \"HEX\"",
    ),
    ("image.path", "image.path = \"/a.qcow2\"", "image.path = \"/b.qcow2\""),
    ("image.path", "", "image.path = \"/b.qcow2\""),
    (
        "image.sha256",
        "image.path = \"/a.qcow2\"",
        "image.path = \"/a.qcow2\"\nimage.sha256 = \"HEX\"",
    ),
    (
        "image.sha512",
        "image.path = \"/a.qcow2\"",
        "image.path = \"/a.qcow2\"\nimage.sha512 = \"HEXHEX\"",
    ),
    (
        "image.checksums",
        "image.url = \"https://a/x\"\nimage.insecureNoChecksum = true",
        "image.url = \"https://a/x\"\nimage.checksums = \"https://a/SUMS\"",
    ),
    (
        "image.insecureNoChecksum",
        "image.url = \"https://a/x\"\nimage.sha256 = \"HEX\"",
        "image.url = \"https://a/x\"\nimage.insecureNoChecksum = true",
    ),
    (
        "image.clone",
        "image.path = \"/a.qcow2\"",
        "image.path = \"/a.qcow2\"\nimage.clone = \"overlay\"",
    ),
    ("disk.NAME.size", "disk.data.size = \"1G\"", "disk.data.size = \"2G\""),
    ("disk.NAME.size", "disk.data.size = \"2G\"", "disk.data.size = \"1G\""),
    (
        "disk.NAME.size",
        "disk.data.image.path = \"/a.qcow2\"",
        "disk.data.image.path = \"/a.qcow2\"\ndisk.data.size = \"1G\"",
    ),
    (
        "disk.NAME.size",
        "disk.data.image.path = \"/a.qcow2\"\ndisk.data.size = \"1G\"",
        "disk.data.image.path = \"/a.qcow2\"",
    ),
    (
        "disk.NAME.format",
        "disk.data.size = \"1G\"",
        "disk.data.size = \"1G\"\ndisk.data.format = \"raw\"",
    ),
    (
        "disk.NAME.format",
        "disk.data.path = \"/d.img\"\ndisk.data.format = \"raw\"",
        "disk.data.path = \"/d.img\"\ndisk.data.format = \"qcow2\"",
    ),
    ("disk.NAME.path", "disk.data.path = \"/a.qcow2\"", "disk.data.path = \"/b.qcow2\""),
    ("disk.NAME.path", "disk.data.path = \"/a.qcow2\"", "disk.data.size = \"1G\""),
    ("disk.NAME.path", "disk.data.size = \"1G\"", "disk.data.path = \"/a.qcow2\""),
    ("disk.NAME.device", "disk.data.device = \"/dev/sda\"", "disk.data.device = \"/dev/sdb\""),
    ("disk.NAME.device", "disk.data.device = \"/dev/sda\"", "disk.data.path = \"/a.qcow2\""),
    (
        "disk.NAME.clone",
        "disk.data.image.path = \"/a.qcow2\"",
        "disk.data.image.path = \"/a.qcow2\"\ndisk.data.clone = \"overlay\"",
    ),
    (
        "disk.NAME.bus",
        "disk.data.size = \"1G\"",
        "disk.data.size = \"1G\"\ndisk.data.bus = \"nvme\"",
    ),
    ("disk.NAME.bus", "", "disk.root.bus = \"sata\""),
    (
        "disk.NAME.media",
        "disk.cd.path = \"/a.iso\"\ndisk.cd.format = \"raw\"",
        "disk.cd.path = \"/a.iso\"\ndisk.cd.format = \"raw\"\ndisk.cd.media = \"cdrom\"",
    ),
    (
        "disk.NAME.readOnly",
        "disk.data.path = \"/a.qcow2\"",
        "disk.data.path = \"/a.qcow2\"\ndisk.data.readOnly = true",
    ),
    (
        "disk.NAME.cache",
        "disk.data.size = \"1G\"",
        "disk.data = { size = \"1G\", cache = \"none\" }",
    ),
    (
        "disk.NAME.iothread",
        "disk.data.size = \"1G\"",
        "disk.data = { size = \"1G\", iothread = true }",
    ),
    (
        "disk.NAME.logicalBlockSize",
        "disk.data.size = \"1G\"",
        "disk.data = { size = \"1G\", logicalBlockSize = 4096 }",
    ),
    ("disk.NAME.iops", "disk.data.size = \"1G\"", "disk.data = { size = \"1G\", iops = 100 }"),
    (
        "disk.NAME.iopsBurst",
        "disk.data = { size = \"1G\", iops = 100 }",
        "disk.data = { size = \"1G\", iops = 100, iopsBurst = 300 }",
    ),
    (
        "disk.NAME.iopsBurstSec",
        "disk.data = { size = \"1G\", iops = 100, iopsBurst = 300, iopsBurstSec = 5 }",
        "disk.data = { size = \"1G\", iops = 200, iopsBurst = 300 }",
    ),
    (
        "disk.NAME.iopsRead",
        "disk.data.size = \"1G\"",
        "disk.data = { size = \"1G\", iopsRead = 100 }",
    ),
    (
        "disk.NAME.iopsReadBurst",
        "disk.data = { size = \"1G\", iopsRead = 100 }",
        "disk.data = { size = \"1G\", iopsRead = 100, iopsReadBurst = 300 }",
    ),
    (
        "disk.NAME.iopsReadBurstSec",
        "disk.data = { size = \"1G\", iopsRead = 100, iopsReadBurst = 300, iopsReadBurstSec = 5 }",
        "disk.data = { size = \"1G\", iopsRead = 200, iopsReadBurst = 300 }",
    ),
    (
        "disk.NAME.iopsWrite",
        "disk.data.size = \"1G\"",
        "disk.data = { size = \"1G\", iopsWrite = 100 }",
    ),
    (
        "disk.NAME.iopsWriteBurst",
        "disk.data = { size = \"1G\", iopsWrite = 100 }",
        "disk.data = { size = \"1G\", iopsWrite = 100, iopsWriteBurst = 300 }",
    ),
    (
        "disk.NAME.iopsWriteBurstSec",
        "disk.data = { size = \"1G\", iopsWrite = 100, iopsWriteBurst = 300, \
         iopsWriteBurstSec = 5 }",
        "disk.data = { size = \"1G\", iopsWrite = 200, iopsWriteBurst = 300 }",
    ),
    (
        "disk.NAME.bandwidth",
        "disk.data = { size = \"1G\", bandwidth = \"10M\" }",
        "disk.data.size = \"1G\"",
    ),
    (
        "disk.NAME.bandwidthBurst",
        "disk.data = { size = \"1G\", bandwidth = \"10M\" }",
        "disk.data = { size = \"1G\", bandwidth = \"10M\", bandwidthBurst = \"1G\" }",
    ),
    (
        "disk.NAME.bandwidthBurstSec",
        "disk.data = { size = \"1G\", bandwidth = \"10M\", bandwidthBurst = \"1G\" }",
        "disk.data = { size = \"1G\", bandwidth = \"10M\", bandwidthBurst = \"1G\", \
         bandwidthBurstSec = 60 }",
    ),
    (
        "disk.NAME.bandwidthRead",
        "disk.data = { size = \"1G\", bandwidthRead = \"10M\" }",
        "disk.data.size = \"1G\"",
    ),
    (
        "disk.NAME.bandwidthReadBurst",
        "disk.data = { size = \"1G\", bandwidthRead = \"10M\" }",
        "disk.data = { size = \"1G\", bandwidthRead = \"10M\", bandwidthReadBurst = \"1G\" }",
    ),
    (
        "disk.NAME.bandwidthReadBurstSec",
        "disk.data = { size = \"1G\", bandwidthRead = \"10M\", bandwidthReadBurst = \"1G\" }",
        "disk.data = { size = \"1G\", bandwidthRead = \"10M\", bandwidthReadBurst = \"1G\", \
         bandwidthReadBurstSec = 60 }",
    ),
    (
        "disk.NAME.bandwidthWrite",
        "disk.data = { size = \"1G\", bandwidthWrite = \"10M\" }",
        "disk.data.size = \"1G\"",
    ),
    (
        "disk.NAME.bandwidthWriteBurst",
        "disk.data = { size = \"1G\", bandwidthWrite = \"10M\" }",
        "disk.data = { size = \"1G\", bandwidthWrite = \"10M\", bandwidthWriteBurst = \"1G\" }",
    ),
    (
        "disk.NAME.bandwidthWriteBurstSec",
        "disk.data = { size = \"1G\", bandwidthWrite = \"10M\", bandwidthWriteBurst = \"1G\" }",
        "disk.data = { size = \"1G\", bandwidthWrite = \"10M\", bandwidthWriteBurst = \"1G\", \
         bandwidthWriteBurstSec = 60 }",
    ),
    (
        "disk.NAME.image.url",
        "disk.data.image = { url = \"https://a/x\", sha256 = \"HEX\" }",
        "disk.data.image = { url = \"https://b/x\", sha256 = \"HEX\" }",
    ),
    (
        "disk.NAME.image.path",
        "disk.data.image.path = \"/a.qcow2\"",
        "disk.data.image.path = \"/b.qcow2\"",
    ),
    ("disk.NAME.image.path", "disk.data.size = \"1G\"", "disk.data.image.path = \"/b.qcow2\""),
    (
        "disk.NAME.image.sha256",
        "disk.data.image.path = \"/a.qcow2\"",
        "disk.data.image = { path = \"/a.qcow2\", sha256 = \"HEX\" }",
    ),
    (
        "disk.NAME.image.sha512",
        "disk.data.image.path = \"/a.qcow2\"",
        "disk.data.image = { path = \"/a.qcow2\", sha512 = \"HEXHEX\" }",
    ),
    (
        "disk.NAME.image.checksums",
        "disk.data.image = { url = \"https://a/x\", sha256 = \"HEX\" }",
        "disk.data.image = { url = \"https://a/x\", checksums = \"https://a/SUMS\" }",
    ),
    (
        "disk.NAME.image.insecureNoChecksum",
        "disk.data.image = { url = \"https://a/x\", sha256 = \"HEX\" }",
        "disk.data.image = { url = \"https://a/x\", insecureNoChecksum = true }",
    ),
    ("mac", "", "mac = \"52:54:00:00:00:01\""),
    ("ip", "bridge = \"br0\"", "bridge = \"br0\"\nip = \"10.0.0.2/24\"\n[cloudInit]"),
    ("ip", "ip = \"10.0.2.20/24\"\n[cloudInit]", "ip = \"10.0.2.21/24\"\n[cloudInit]"),
    (
        "gateway",
        "ip = \"10.0.2.20/24\"\n[cloudInit]",
        "ip = \"10.0.2.20/24\"\ngateway = \"10.0.2.1\"\n[cloudInit]",
    ),
    ("dns", "[cloudInit]", "dns = [\"10.0.2.3\", \"9.9.9.9\"]\n[cloudInit]"),
    ("bridge", "bridge = \"br0\"", "bridge = \"br1\""),
    ("bridge", "", "bridge = \"br1\""),
    ("bridge", "bridge = \"br0\"\nantiSpoof = true", "forward = [\"2222:22\"]"),
    ("forward", "", "forward = [\"2222:22\", \"0.0.0.0:53:53/udp\"]"),
    ("antiSpoof", "bridge = \"br0\"", "bridge = \"br0\"\nantiSpoof = false"),
    ("antiSpoof", "bridge = \"br0\"\nantiSpoof = true", "bridge = \"br0\""),
    ("antiSpoof", "", "bridge = \"br0\"\nantiSpoof = true"),
    ("nic.NAME.mac", "[nic.lan]", "[nic.lan]\nmac = \"52:54:00:00:00:01\""),
    ("nic.NAME.ip", "[nic.lan]\nip = \"10.0.2.20/24\"\n[cloudInit]", "[nic.lan]\n[cloudInit]"),
    (
        "nic.NAME.gateway",
        "[nic.lan]\nip = \"10.0.2.20/24\"\n[cloudInit]",
        "[nic.lan]\nip = \"10.0.2.20/24\"\ngateway = \"10.0.2.1\"\n[cloudInit]",
    ),
    ("nic.NAME.dns", "[nic.lan]\n[cloudInit]", "[nic.lan]\ndns = [\"9.9.9.9\"]\n[cloudInit]"),
    ("nic.NAME.bridge", "[nic.lan]\nbridge = \"br0\"", "[nic.lan]\nbridge = \"br1\""),
    ("nic.NAME.bridge", "[nic.lan]\nbridge = \"br0\"\nisolated = true", "[nic.lan]"),
    ("nic.NAME.forward", "[nic.lan]\nforward = [\"2222:22\"]", "[nic.lan]"),
    ("nic.NAME.mtu", "[nic.lan]\nbridge = \"br0\"", "[nic.lan]\nbridge = \"br0\"\nmtu = 9000"),
    ("nic.NAME.model", "[nic.lan]", "[nic.lan]\nmodel = \"e1000e\""),
    ("nic.NAME.link", "[nic.lan]", "[nic.lan]\nlink = \"down\""),
    ("nic.NAME.link", "[nic.net]\nlink = \"down\"", ""),
    (
        "nic.NAME.antiSpoof",
        "[nic.lan]\nbridge = \"br0\"",
        "[nic.lan]\nbridge = \"br0\"\nantiSpoof = false",
    ),
    (
        "nic.NAME.isolated",
        "[nic.lan]\nbridge = \"br0\"",
        "[nic.lan]\nbridge = \"br0\"\nisolated = true",
    ),
    (
        "nic.NAME.isolated",
        "[nic.lan]\nbridge = \"br0\"\nisolated = true",
        "[nic.lan]\nbridge = \"br0\"",
    ),
    ("nic.NAME.tap", "[nic.lan]\nbridge = \"br0\"", "[nic.lan]\nbridge = \"br0\"\ntap = \"lan0\""),
    ("cloudInit.hostname", "[cloudInit]", "[cloudInit]\nhostname = \"web.example.org\""),
    ("cloudInit.user", "[cloudInit]\nuser = \"a\"", "[cloudInit]\nuser = \"b\""),
    (
        "cloudInit.sshAuthorizedKeys",
        "[cloudInit]",
        "[cloudInit]\nsshAuthorizedKeys = [\"ssh-ed25519 \
         AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT op@desk\"]",
    ),
    ("cloudInit.passwordHash", "[cloudInit]", "[cloudInit]\npasswordHash = \"$6$salt$hash\""),
    (
        "cloudInit.passwordHash",
        "[cloudInit]\npasswordHash = \"$6$salt$hash\"",
        "[cloudInit]\npasswordHash = \"$6$salt$hasi\"",
    ),
    ("cloudInit.userData", "[cloudInit]\nuserData = \"a\"", "[cloudInit]\nuserData = \"longer\""),
    (
        "display.vnc",
        "[display]\nvnc = \"unix\"",
        "[display]\nvnc = \"127.0.0.1:5900\"\npasswordFile = \"p\"",
    ),
    ("display.vnc", "[display]\nvnc = \"unix\"", "[display]"),
    ("display.vnc", "[display]", "[display]\nvnc = \"unix\""),
    (
        "display.passwordFile",
        "[display]\nvnc = \"127.0.0.1:5900\"\npasswordFile = \"p\"",
        "[display]\nvnc = \"127.0.0.1:5900\"\npasswordFile = \"q\"",
    ),
];

/// Whole tables and their order, and several keys at once.
const TABLES: &[Row] = &[
    (
        "same",
        "vcpu = 2\n[disk.data]\nsize = \"1G\"\n[nic.lan]",
        "vcpu = 2\n[disk.data]\nsize = \"1G\"\n[nic.lan]",
    ),
    (
        "disk",
        "disk.data.size = \"1G\"\ndisk.logs.size = \"2G\"",
        "disk.logs.size = \"2G\"\ndisk.data.size = \"1G\"",
    ),
    ("disk", "", "disk.data.size = \"1G\""),
    ("disk", "disk.data.size = \"1G\"", ""),
    ("disk", "", "disk.data = { size = \"1G\", bus = \"nvme\", format = \"raw\" }"),
    ("disk", "", "disk.data = { size = \"1G\", bus = \"sata\" }"),
    ("disk", "disk.data = { size = \"1G\", bus = \"sata\" }", ""),
    ("disk", "", "disk.cd = { path = \"/a.iso\", media = \"cdrom\" }"),
    ("disk", "disk.cd = { path = \"/a.iso\", media = \"cdrom\" }", ""),
    ("disk", "", "disk.tank.device = \"/dev/disk/by-id/ata\""),
    (
        "disk",
        "",
        "disk.tools = { clone = \"overlay\", image.url = \"https://a/x\", image.sha256 = \"HEX\" }",
    ),
    (
        "disk",
        "disk.a.size = \"1G\"\ndisk.b.size = \"1G\"\ndisk.c.size = \"1G\"",
        "disk.c.size = \"2G\"\ndisk.b.size = \"1G\"\ndisk.d.size = \"1G\"",
    ),
    ("nic", "", "[nic]"),
    ("nic", "[nic]", ""),
    ("nic", "[nic]", "bridge = \"br0\""),
    ("nic", "[nic.net]", "[nic.net]\n[nic.lan]\nbridge = \"br1\""),
    ("nic", "[nic.net]\n[nic.lan]\nbridge = \"br1\"\nisolated = true", "[nic.net]"),
    ("nic", "[nic.net]\n[nic.lan]", "[nic.lan]\n[nic.wan]"),
    ("nic", "[nic.net]\n[nic.lan]\n[nic.wan]", "[nic.net]\n[nic.wan]\n[nic.lan]"),
    ("nic", "bridge = \"br0\"", "bridge = \"br0\"\n[nic.out]"),
    (
        "nic",
        "bridge = \"br0\"\nisolation = \"off\"",
        "bridge = \"br0\"\nisolation = \"off\"\n[nic.out]",
    ),
    ("nic", "bridge = \"br0\"\n[nic.out]", "bridge = \"br0\"\n[nic.out]\n[nic.more]"),
    (
        "nic",
        "bridge = \"br0\"",
        "bridge = \"br1\"\nantiSpoof = false\n[nic.net]\nisolated = true\nlink = \"down\"\n\
         mtu = 1400",
    ),
    ("cloudInit", "", "[cloudInit]\nuser = \"a\""),
    ("cloudInit", "[cloudInit]\nuser = \"a\"", ""),
    ("display", "", "[display]\nvnc = \"unix\""),
    ("display", "[display]\nvnc = \"unix\"", ""),
    (
        "reset",
        "onGuestReboot = \"reset\"",
        "accel = \"kvm\"\nonGuestReboot = \"apply\"\nready = \"agent\"\nfirmware = \"uefi\"\n\
         mem = \"2G\"",
    ),
];

fn read(text: &str) -> Vm {
    let text = text.replace("HEX", HEX);
    let file = Path::new("/etc/qvm/vms/web.toml");
    let mut user_data = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(format!("#cloud-config\n# {name}\n").into_bytes())
    };
    // An empty VM file is refused; the name of the VM is no difference.
    let text = if text.is_empty() { "accel = \"auto\"".to_owned() } else { text };
    spec::read(&"web".parse().unwrap(), file, &text, &mut user_data)
        .unwrap_or_else(|problems| panic!("{text}: {}", problems[0]))
}

fn json(running: &Vm, written: &Vm, versions: [&Versions; 2], screen: ScreenServer) -> Vec<String> {
    let [now, installed] = versions;
    let facts = Facts { max_memory: running.mem, screen, running: now, installed };
    let changes = VmDiff::between(running, written, &facts).pending();
    changes.iter().map(|one| serde_json::to_string(one).unwrap()).collect()
}

fn report(title: &str, running: &str, written: &str, changes: &[String]) -> String {
    let mut text = format!("## {title}\n");
    for (sign, side) in [('-', running), ('+', written)] {
        for line in side.lines() {
            let _ = writeln!(text, "{sign} {line}");
        }
    }
    for change in changes {
        let _ = writeln!(text, "{change}");
    }
    text + "\n"
}

#[test]
fn every_key_has_a_row() {
    let rows: BTreeSet<String> = KEYS.iter().map(|(key, ..)| (*key).to_owned()).collect();
    assert_eq!(&rows, spec::keys());
}

#[test]
fn json_of_each_change_is_golden() {
    let mut text = String::new();
    let unknown = Versions::default();
    for (title, from, to) in KEYS.iter().chain(TABLES) {
        let versions = [&unknown, &unknown];
        let changes = json(&read(from), &read(to), versions, ScreenServer::Supervisor);
        text.push_str(&report(title, from, to, &changes));
    }
    let versions = |qemu: &str, firmware: &str, instance: &str| Versions {
        qemu: Some(qemu.to_owned()),
        firmware: Some(firmware.to_owned()),
        instance: Some(instance.to_owned()),
    };
    let old = &versions("10.0.2", "/f.fd of A", "i-1");
    let new = &versions("10.1.0", "/f.fd of B", "i-2");
    let no_seed = &Versions { instance: None, ..old.clone() };
    for (title, from, to, versions) in [
        ("another QEMU, firmware and seed", "", "", [old, new]),
        ("the same QEMU, firmware and seed", "", "", [old, old]),
        ("seed removed", "", "", [old, no_seed]),
        ("reset", "onGuestReboot = \"reset\"", "onGuestReboot = \"reset\"", [old, new]),
    ] {
        let changes = json(&read(from), &read(to), versions, ScreenServer::Supervisor);
        text.push_str(&report(title, from, to, &changes));
    }
    let unix = "[display]\nvnc = \"unix\"";
    let port = "[display]\nvnc = \"127.0.0.1:5900\"\npasswordFile = \"p\"";
    let (by_qemu, not_served) = (ScreenServer::Qemu, ScreenServer::Failed);
    for (title, from, to, screen) in [
        ("a screen that QEMU serves", unix, port, by_qemu),
        ("a screen that QEMU serves", unix, "[display]", by_qemu),
        ("a screen that is not served", unix, unix, not_served),
        ("a screen that is not served", unix, port, not_served),
        ("a screen that is not served", unix, "[display]", not_served),
        ("a screen that is not served", unix, "", not_served),
    ] {
        let changes = json(&read(from), &read(to), [&unknown, &unknown], screen);
        text.push_str(&report(title, from, to, &changes));
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vm-diff.txt");
    if std::env::var_os("QVM_BLESS").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    let wanted = fs::read_to_string(&golden).unwrap_or_default();
    let lines = text.lines().zip(wanted.lines()).find(|(got, wanted)| got != wanted);
    assert!(text == wanted, "tests/golden/vm-diff.txt differs, first in {lines:?}");
}
