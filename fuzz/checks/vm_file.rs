//! Any text as a VM file: no panic, every problem lies inside the text, and what is accepted becomes the same plan each time: a command line
//! whose JSON is JSON, a unit whose settings are one line each, a seed that says what the file says, and a copy that reads.

use std::{io, path::Path};

use qvm::{
    machine::{
        argv::{Machine, argv},
        diff::{Facts, ScreenServer, VmDiff, running_machine::Versions},
        facts::Accelerator,
        firmware::SelectedFirmware,
    },
    seed::documents,
    spec::{self, Vm},
    store::{identity::Identity, layout::Layout},
    supervisor::start::prepare::disk_file,
    systemd::unit,
    transfer::vm_text,
};
use serde_json::Value;
use serde_norway::Value as Yaml;

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let first = read(text);
    assert_eq!(first, read(text), "the same text reads differently");
    match first {
        Ok(vm) => accepted(&vm, text),
        Err(problems) => super::are_told(&problems, text),
    }
}

fn read(text: &str) -> Result<Vm, Vec<spec::Problem>> {
    let name = "web".parse().expect("a VM's name");
    // Some files that VM files name are there, and some are text.
    let mut user_data = |path: &Path| match path.as_os_str().len() % 3 {
        0 => Err(io::Error::from(io::ErrorKind::NotFound)),
        1 => Ok(b"#cloud-config\n".to_vec()),
        _ => Ok(text.as_bytes().to_vec()),
    };
    spec::read(&name, Path::new("/etc/qvm/vms/web.toml"), text, &mut user_data)
}

/// The VM of a file that says nothing but where its disk comes from.
pub fn minimal() -> Vm {
    read("image.path = \"/x.qcow2\"\n").expect("a VM file")
}

fn accepted(vm: &Vm, text: &str) {
    command_line(vm, None);
    let versions = Versions::default();
    let facts = Facts {
        max_memory: vm.mem,
        screen: ScreenServer::Supervisor,
        running: &versions,
        installed: &versions,
    };
    assert!(VmDiff::between(vm, vm, &facts).is_empty());
    let unit = unit::drop_in(vm, unit::Scope::System);
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '['])) {
        let key = line.split_once('=').map(|(key, _)| key);
        let known = key.is_some_and(|key| KEYS.contains(&key));
        assert!(known && !line.ends_with('\\'), "{line:?} in {unit}");
    }
    super::is_tame(&unit);
    seeded(vm);
    let copied = vm_text::copied(text, &vm.name);
    if let Ok(copy) = read(&copied.text) {
        assert_eq!((copy.vcpu, copy.mem, copy.nics.len()), (vm.vcpu, vm.mem, vm.nics.len()));
        assert_eq!(vm_text::copied(&copied.text, &vm.name).keys, [""; 0]);
    }
}

const KEYS: [&str; 20] = [
    "SourcePath",
    "Description",
    "Wants",
    "After",
    "RequiresMountsFor",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "CPUWeight",
    "CPUQuota",
    "MemoryMax",
    "IOWeight",
    "ProtectHome",
    "PrivateTmp",
    "RestrictAddressFamilies",
    "PrivateNetwork",
    "RestrictNamespaces",
    "CapabilityBoundingSet",
    "MemoryDenyWriteExecute",
    "ReadWritePaths",
    "DeviceAllow",
];

fn identity(vm: &Vm) -> Identity {
    let uuid = "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
    let mut identity = Identity::new(vm, uuid.clone(), &uuid, "pc-q35-10.0");
    identity.add_macs(vm, "host", &Default::default());
    assert_eq!(identity.flaw(), None);
    identity
}

/// QEMU's command line, which is the same again.
pub fn command_line(vm: &Vm, firmware: Option<&SelectedFirmware>) {
    let [config, state, runtime] = ["/c", "/s", "/r"].map(Into::into);
    let paths = Layout { config, state, runtime }.vm(&vm.name);
    let disks: Vec<_> = vm.disks.iter().map(|disk| disk_file(&paths, disk)).collect();
    let machine = Machine {
        vm,
        identity: &identity(vm),
        paths: &paths,
        accel: Accelerator::Tcg,
        vhost_net: false,
        disks: &disks,
        firmware,
        restores: false,
        sandbox: true,
    };
    let Ok(line) = argv(&machine) else { return };
    assert_eq!(argv(&machine).ok(), Some(line.clone()));
    for pair in line.arguments.windows(2) {
        let [option, value] = pair else { continue };
        if ["-device", "-blockdev", "-object", "-netdev"].contains(&option.as_str()) {
            let read: Value = serde_json::from_str(value).expect("JSON");
            assert!(read.is_object(), "{value}");
        }
    }
}

/// What cloud-init's YAML says is what the VM file says.
fn seeded(vm: &Vm) {
    let Some(cloud_init) = &vm.cloud_init else { return };
    let identity = identity(vm);
    let documents = documents::documents(vm, &identity).expect("a seed");
    documents::image(&documents).expect("a CD");
    let yaml = |text: &str| serde_norway::from_str::<Yaml>(text).expect("YAML");
    let (meta, network) = (yaml(&documents.meta_data), yaml(&documents.network_config));
    let hostname = cloud_init.hostname.as_deref().unwrap_or(vm.name.as_str());
    assert_eq!(meta["local-hostname"].as_str(), Some(hostname));
    for nic in &vm.nics {
        let told = &network["ethernets"][nic.name.as_str()];
        let mac = nic.mac.unwrap_or_else(|| identity.macs[&nic.name]).to_string();
        assert_eq!(told["match"]["macaddress"].as_str(), Some(mac.as_str()));
        let dns: Vec<String> = nic.dns.iter().map(ToString::to_string).collect();
        assert_eq!(texts(&told["nameservers"]["addresses"]), dns);
    }
    if let Some(own) = &cloud_init.user_data {
        return assert_eq!(documents.user_data, own.bytes);
    }
    let user = yaml(std::str::from_utf8(&documents.user_data).expect("text"));
    assert_eq!(user["user"]["name"].as_str(), cloud_init.user.as_deref());
    assert_eq!(user["user"]["hashed_passwd"].as_str(), cloud_init.password_hash.as_deref());
    assert_eq!(texts(&user["ssh_authorized_keys"]), cloud_init.ssh_authorized_keys);
}

fn texts(list: &Yaml) -> Vec<String> {
    let texts = list.as_sequence().into_iter().flatten();
    texts.map(|text| text.as_str().expect("a text").to_owned()).collect()
}
