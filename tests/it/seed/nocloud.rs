//! The NoCloud seed: its content, byte for byte, and whether other programs read the CD correctly.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use qvm::{
    seed::{
        documents::{self, Documents},
        iso9660,
    },
    spec::{
        Accel, AntiSpoof, CloudInit, Firmware, HostShutdown, Link, Model, Nic, OnGuestReboot,
        OnPanic, Ready, ReadyFailure, TapHeal, UserData, Vm,
    },
    store::identity::Identity,
    value::{CpuWeight, MacAddr, Size},
};
use serde_norway::Value;

fn nic(name: &str, mac: Option<&str>) -> Nic {
    Nic {
        name: name.parse().unwrap(),
        mac: mac.map(|mac| mac.parse().unwrap()),
        ip: None,
        gateway: None,
        dns: Vec::new(),
        mtu: None,
        anti_spoof: AntiSpoof::default(),
        isolated: false,
        model: Model::Virtio,
        state: qvm::spec::LinkState::Up,
        link: Link::User { forward: Vec::new() },
    }
}

fn static_nic(name: &str, mac: Option<&str>, ip: &str, gateway: Option<&str>) -> Nic {
    Nic {
        ip: Some(ip.parse().unwrap()),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        ..nic(name, mac)
    }
}

fn vm(nics: Vec<Nic>, cloud_init: Option<CloudInit>) -> Vm {
    Vm {
        name: "web".parse().unwrap(),
        file: PathBuf::from("/etc/qvm/vms/web.toml"),
        description: None,
        autostart: false,
        after: Vec::new(),
        vcpu: 1,
        mem: "1G".parse::<Size>().unwrap(),
        cpu_weight: CpuWeight::default(),
        cpu_quota: None,
        cpu_pin: Vec::new(),
        memory_max: None,
        io_weight: None,
        oom_score_adjust: None,
        ready: Ready::Running,
        ready_timeout: Vm::READY_TIMEOUT,
        ready_failure: ReadyFailure::Continue,
        host_shutdown: HostShutdown::Stop,
        shutdown_timeout: serde_json::from_str("120").unwrap(),
        accel: Accel::Auto,
        firmware: Firmware::Bios,
        isolation: Default::default(),
        on_panic: OnPanic::Restart,
        tap_heal: TapHeal::Heal,
        operators: vec![],
        on_guest_reboot: OnGuestReboot::Apply,
        disks: Vec::new(),
        nics,
        cloud_init,
        display: None,
        lines: BTreeMap::new(),
    }
}

fn identity() -> Identity {
    let mac = |last| MacAddr::local([0, 0, last]);
    Identity {
        uid: None,
        uuid: "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
        instance_id: "web-7e0f3c52".into(),
        machine: "pc-q35-10.0".into(),
        macs: [("net", 1), ("lan", 2), ("six", 3)]
            .map(|(name, last)| (name.parse().unwrap(), mac(last)))
            .into(),
        hostname: None,
    }
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGq op@desk";

/// One VM for each kind of seed, by the name of its golden file.
fn cases() -> Vec<(&'static str, Vm)> {
    let simple = CloudInit {
        user: Some("op".into()),
        ssh_authorized_keys: vec![
            KEY.into(),
            "no-pty,command=\"id \\\"x\\\"\" ssh-rsa AAAA".into(),
        ],
        ..CloudInit::default()
    };
    let mut routed =
        static_nic("net", Some("52:54:00:61:90:15"), "192.168.97.15/24", Some("192.168.97.1"));
    routed.dns = vec!["192.168.97.1".parse().unwrap(), "fd00::53".parse().unwrap()];
    routed.mtu = Some(9000);
    let mut named = nic("lan", None);
    named.dns = vec!["10.0.0.53".parse().unwrap()];
    let own = CloudInit {
        hostname: Some("own.example.org".into()),
        user_data: Some(UserData {
            path: PathBuf::from("/etc/qvm/vms/web.user-data.yaml"),
            bytes: "#!/bin/sh\r\nprintf 'ä\\0'\n\n# no newline at the end".into(),
            notes: vec![],
        }),
        ..CloudInit::default()
    };
    vec![
        ("dhcp", vm(vec![nic("net", None)], Some(simple.clone()))),
        ("static", vm(vec![routed.clone()], Some(simple.clone()))),
        (
            "many-nics",
            vm(
                vec![
                    routed,
                    named,
                    static_nic("six", None, "2001:db8::15/64", Some("2001:db8::1")),
                    static_nic("flat", Some("52:54:00:00:00:09"), "fd00::15/64", None),
                ],
                Some(CloudInit {
                    hostname: Some("web.example.org".into()),
                    password_hash: Some("$6$salt$hash".into()),
                    ..simple
                }),
            ),
        ),
        ("own-user-data", vm(vec![nic("net", None)], Some(own))),
        (
            "password-of-the-default-user",
            vm(
                Vec::new(),
                Some(CloudInit {
                    password_hash: Some("$y$j9T$salt$hash".into()),
                    ..CloudInit::default()
                }),
            ),
        ),
        ("empty", vm(vec![nic("net", None)], Some(CloudInit::default()))),
    ]
}

#[test]
fn documents_match_golden_files() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/seed");
    let bless = std::env::var_os("QVM_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, vm) in cases() {
        let Documents { meta_data, user_data, network_config } =
            documents::documents(&vm, &identity()).unwrap();
        let user_data = String::from_utf8(user_data).unwrap();
        for (document, text) in
            [("meta-data", meta_data), ("user-data", user_data), ("network-config", network_config)]
        {
            let path = directory.join(name).join(document);
            if bless {
                std::fs::create_dir_all(directory.join(name)).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                wrong.push(format!("--- {} should be\n{text}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "QVM_BLESS=1 rewrites the golden files\n{}", wrong.join("\n"));
}

#[test]
fn own_user_data_is_unchanged() {
    let (_, vm) = cases().into_iter().find(|(name, _)| *name == "own-user-data").unwrap();
    let given = vm.cloud_init.clone().unwrap().user_data.unwrap().bytes;
    assert_eq!(documents::documents(&vm, &identity()).unwrap().user_data, given);
}

#[test]
fn no_table_means_no_seed() {
    assert_eq!(documents::documents(&vm(vec![nic("net", None)], None), &identity()), None);
}

#[test]
fn mac_is_a_yaml_string() {
    // 52:54:00:12:34:56 is a base-60 integer in YAML 1.1.
    let vm = vm(vec![nic("net", Some("52:54:00:12:34:56"))], Some(CloudInit::default()));
    let text = documents::documents(&vm, &identity()).unwrap().network_config;
    assert!(text.contains("macaddress: \"52:54:00:12:34:56\"\n"), "{text}");
}

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

proptest! {
    #[test]
    fn no_text_changes_the_documents(
        hostname in any::<String>(),
        user in any::<String>(),
        keys in prop::collection::vec(any::<String>(), 0..4),
        hash in prop::option::of(any::<String>()),
        instance_id in any::<String>(),
    ) {
        let vm = vm(vec![nic("net", None)], Some(CloudInit {
            hostname: Some(hostname.clone()),
            user: Some(user.clone()),
            ssh_authorized_keys: keys.clone(),
            password_hash: hash.clone(),
            user_data: None,
        }));
        let identity = Identity { instance_id: instance_id.clone(), ..identity() };
        let documents = documents::documents(&vm, &identity).unwrap();

        let meta = yaml(&documents.meta_data);
        prop_assert_eq!(meta.as_mapping().unwrap().len(), 2);
        prop_assert_eq!(&meta["instance-id"], &Value::from(instance_id));
        prop_assert_eq!(&meta["local-hostname"], &Value::from(hostname.clone()));

        prop_assert!(documents.user_data.starts_with(b"#cloud-config\n"));
        let data = yaml(std::str::from_utf8(&documents.user_data).unwrap());
        prop_assert_eq!(data.as_mapping().unwrap().len(), if keys.is_empty() { 3 } else { 4 });
        prop_assert_eq!(&data["hostname"], &Value::from(hostname));
        prop_assert_eq!(&data["ssh_pwauth"], &Value::from(false));
        prop_assert_eq!(&data["user"]["name"], &Value::from(user));
        prop_assert_eq!(&data["user"]["lock_passwd"], &Value::from(hash.is_none()));
        if let Some(hash) = hash {
            prop_assert_eq!(&data["user"]["hashed_passwd"], &Value::from(hash));
        }
        if !keys.is_empty() {
            prop_assert_eq!(&data["ssh_authorized_keys"], &Value::from(keys));
        }
    }
}

#[test]
fn many_nics_read_back_as_written() {
    let (_, vm) = cases().into_iter().find(|(name, _)| *name == "many-nics").unwrap();
    let config = yaml(&documents::documents(&vm, &identity()).unwrap().network_config);
    assert_eq!(config["version"], Value::from(2));
    let nics = &config["ethernets"];
    assert_eq!(nics.as_mapping().unwrap().len(), 4);
    let expected = [
        ("net", "52:54:00:61:90:15", Some("192.168.97.15/24"), Some(("0.0.0.0/0", "192.168.97.1"))),
        ("lan", "52:54:00:00:00:02", None, None),
        ("six", "52:54:00:00:00:03", Some("2001:db8::15/64"), Some(("::/0", "2001:db8::1"))),
        ("flat", "52:54:00:00:00:09", Some("fd00::15/64"), None),
    ];
    for (name, mac, address, route) in expected {
        let nic = &nics[name];
        assert_eq!(nic["match"]["macaddress"], Value::from(mac));
        assert_eq!(nic["addresses"][0].as_str(), address);
        assert_eq!(nic.get("dhcp4").is_some(), address.is_none());
        assert_eq!(nic["routes"][0]["to"].as_str(), route.map(|(to, _)| to));
        assert_eq!(nic["routes"][0]["via"].as_str(), route.map(|(_, via)| via));
    }
    assert_eq!(nics["six"]["accept-ra"], Value::from(false));
    assert_eq!(nics["flat"]["accept-ra"], Value::from(true));
    assert_eq!(nics["net"].get("accept-ra"), None);
    assert_eq!(nics["net"]["mtu"], Value::from(9000));
}

/// Whether a program exists; if not, the test is skipped, or fails if `QVM_TEST_REQUIRE` names it.
fn have(program: &str) -> bool {
    let there = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(program).is_file())
    });
    if !there {
        let required = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == program), "`{program}` is required");
        eprintln!("skipped: no {program}");
    }
    there
}

/// The seed of many NICs and a file of some sectors, written to a directory.
fn written() -> (tempfile::TempDir, PathBuf, Vec<(String, Vec<u8>)>) {
    let (_, vm) = cases().into_iter().find(|(name, _)| *name == "many-nics").unwrap();
    let documents = documents::documents(&vm, &identity()).unwrap();
    let large: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let files: Vec<(String, Vec<u8>)> = vec![
        ("meta-data".into(), documents.meta_data.into()),
        ("network-config".into(), documents.network_config.into()),
        ("user-data".into(), documents.user_data),
        ("vendor-data".into(), Vec::new()),
        ("Large File.tar.gz".into(), large),
    ];
    let given: Vec<(&str, &[u8])> =
        files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("seed.iso");
    std::fs::write(&path, iso9660::image(documents::LABEL, &given).unwrap()).unwrap();
    (directory, path, files)
}

#[test]
fn xorriso_reads_rock_ridge_and_joliet() {
    if !have("xorriso") {
        return;
    }
    let (directory, image, files) = written();
    for (tree, load) in [("rock-ridge", "any"), ("joliet", "norock")] {
        let into = directory.path().join(tree);
        let output = Command::new("xorriso")
            .args(["-abort_on", "WARNING", "-report_about", "NOTE"])
            .args(["-read_fs", load, "-indev"])
            .arg(&image)
            .args(["-osirrox", "on", "-extract", "/"])
            .arg(&into)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tree}: {said}");
        assert!(said.contains("Volume id    : 'cidata'"), "{said}");
        // Extracted with the modes of the image: 0500 and 0400 are readable for this user.
        let found = std::fs::read_dir(&into).unwrap().count();
        assert_eq!(found, files.len(), "{tree}: {said}");
        for (name, content) in &files {
            assert_eq!(&std::fs::read(into.join(name)).unwrap(), content, "{tree}: {name}");
        }
        make_removable(&into);
    }
}

/// An unprivileged user cannot empty a directory of mode 0500.
fn make_removable(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn blkid_finds_the_cloud_init_label() {
    if !have("blkid") {
        return;
    }
    let (_directory, image, _) = written();
    let program = ["/usr/sbin/blkid", "/sbin/blkid"].into_iter().find(|p| Path::new(p).exists());
    let output = Command::new(program.unwrap_or("blkid"))
        .args(["-p", "-o", "export"])
        .arg(&image)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.lines().any(|line| line == "LABEL=cidata"), "{said}");
    assert!(said.lines().any(|line| line == "TYPE=iso9660"), "{said}");
}

#[test]
fn seed_is_small_and_reproducible() {
    for (name, vm) in cases() {
        let documents = documents::documents(&vm, &identity()).unwrap();
        let image = documents::image(&documents).unwrap();
        assert_eq!(image, documents::image(&documents).unwrap(), "{name}");
        assert_eq!(image.len(), 28 * iso9660::SECTOR, "{name}");
    }
}
