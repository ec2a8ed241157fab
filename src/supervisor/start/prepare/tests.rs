//! Preparation below a temporary directory, with a program that only knows QEMU's version.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::*;
use crate::supervisor::tests::{Host, prepared_vm, qemu_program, vm};

/// A host with QEMU 8.2 and without KVM.
struct Scene {
    host: Host,
    settings: Settings,
    messages: Mutex<Vec<String>>,
}

impl Scene {
    fn new() -> Self {
        let host = Host::new();
        let mut settings = host.ctx.settings().clone();
        settings.qemu = Some(qemu_program(host.dir.path(), "").into());
        Self { host, settings, messages: Mutex::default() }
    }

    /// A VM file of a VM whose disk is a file of the operator.
    fn vm(&self, text: &str) -> Vm {
        prepared_vm(self.host.dir.path(), text)
    }

    fn prepare(&self, vm: Vm) -> Result<Prepared, Error> {
        let say = |text: String| self.messages.lock().unwrap().push(text);
        prepare(&self.settings, vm, &Cancel::default(), &say)
    }
}

#[test]
fn everything_is_prepared_once() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    let vm = scene.vm("[cloudInit]\nuser = \"me\"\n");
    let first = scene.prepare(vm.clone()).unwrap();
    assert_eq!(first.identity.machine, "pc-q35-8.2");
    assert_eq!(first.accel, Accelerator::Tcg);
    assert_eq!(first.disks.len(), 1);
    assert_eq!(first.disks[0].path, scene.host.dir.path().join("root.raw"));
    assert!(first.firmware.is_none(), "BIOS has no file");
    let seed = fs::read(paths.seed()).unwrap();
    assert!(!seed.is_empty());
    let (identity, written) = (first.identity.clone(), fs::metadata(paths.seed()).unwrap());
    drop(first);
    // The next start has the same guest, and writes no file that is as it should be.
    let second = scene.prepare(vm).unwrap();
    assert_eq!(second.identity, identity);
    let again = fs::metadata(paths.seed()).unwrap();
    assert_eq!(again.modified().unwrap(), written.modified().unwrap());
    let mode = fs::metadata(paths.seed()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the seed may contain passwords");
}

#[test]
fn liveness_locks_are_held_until_dropped() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    let prepared = scene.prepare(scene.vm("")).unwrap();
    assert!(Liveness::for_qemu(&paths).is_err());
    drop(prepared);
    // A process that another test forks at this moment has the descriptors until it executes.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = Liveness::for_qemu(&paths) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn held_locks_prevent_preparation() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    fs::create_dir_all(&paths.state).unwrap();
    let _held = Liveness::for_qemu(&paths).unwrap();
    let error = scene.prepare(scene.vm("[cloudInit]\n")).unwrap_err();
    assert!(matches!(error, Error::Liveness(_)), "{error:?}");
    // No file of the running QEMU was touched.
    assert!(!paths.seed().exists() && !paths.identity().exists());
}

#[test]
fn kvm_that_is_demanded_must_be_there() {
    let scene = Scene::new();
    let text = "accel = \"kvm\"\n";
    let vm = vm(&format!("{text}[disk.root]\npath = \"/nowhere\"\nformat = \"raw\"\n"));
    let error = scene.prepare(vm).unwrap_err();
    assert!(matches!(error, Error::NoKvm(_)), "{error:?}");
}

#[test]
fn missing_kvm_is_noted() {
    let scene = Scene::new();
    let file = scene.host.dir.path().join("root.raw");
    fs::write(&file, vec![0; 512]).unwrap();
    let text = format!("[disk.root]\npath = \"{}\"\nformat = \"raw\"\n", file.display());
    let prepared = scene.prepare(vm(&text)).unwrap();
    assert_eq!(prepared.accel, Accelerator::Tcg);
    assert_eq!(prepared.notes.len(), 1, "{:?}", prepared.notes);
}

#[test]
fn missing_disk_is_named() {
    let scene = Scene::new();
    let vm = scene.vm("");
    fs::remove_file(scene.host.dir.path().join("root.raw")).unwrap();
    let error = scene.prepare(vm).unwrap_err();
    let Error::Disk { at, .. } = &error else { panic!("{error:?}") };
    assert!(at.contains("/v/web.toml"), "{at}");
}

#[test]
fn canceled_preparation_ends() {
    let scene = Scene::new();
    let cancel = Cancel::default();
    cancel.set();
    let error = prepare(&scene.settings, scene.vm(""), &cancel, &|_| ()).unwrap_err();
    assert!(matches!(error, Error::Canceled), "{error:?}");
}

#[test]
fn older_qemu_is_refused() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    drop(scene.prepare(scene.vm("")).unwrap());
    let text = fs::read_to_string(paths.identity()).unwrap();
    fs::write(paths.identity(), text.replace("pc-q35-8.2", "pc-q35-9.0")).unwrap();
    let error = scene.prepare(scene.vm("")).unwrap_err();
    assert!(
        matches!(&error, Error::OlderQemu { machine, .. } if machine == "pc-q35-9.0"),
        "{error:?}"
    );
    // An older machine type is one that this QEMU knows.
    fs::write(paths.identity(), text.replace("pc-q35-8.2", "pc-q35-7.2")).unwrap();
    assert_eq!(scene.prepare(scene.vm("")).unwrap().identity.machine, "pc-q35-7.2");
}

#[test]
fn missing_qemu_is_a_probe_error() {
    let mut scene = Scene::new();
    scene.settings.qemu = Some("/nowhere/qemu".into());
    let error = scene.prepare(scene.vm("")).unwrap_err();
    assert!(matches!(error, Error::Probe(_)), "{error:?}");
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    fs::create_dir_all(&paths.state).unwrap();
    let left = paths.state.join(".qvm-tmp_0123456789abcdef");
    fs::write(&left, "half").unwrap();
    drop(scene.prepare(scene.vm("")).unwrap());
    assert!(!left.exists());
}

#[test]
fn facts_are_kept_for_the_next_start() {
    let scene = Scene::new();
    let facts = facts_of(&scene.settings).unwrap();
    assert_eq!((facts.qemu.machine.as_str(), facts.vhost_net), ("pc-q35-8.2", false));
    assert!(facts.qemu.sandbox, "this program accepts `-sandbox`");
    let cache = scene.settings.layout.facts_cache();
    assert!(cache.exists());
    write_facts(&cache, b"[]").unwrap();
    assert_eq!(fs::read(&cache).unwrap(), b"[]");
    assert!(write_facts(&scene.host.dir.path().join("no/such.json"), b"[]").is_err());
}

#[test]
fn identity_is_shown_without_being_written() {
    let scene = Scene::new();
    let facts = facts_of(&scene.settings).unwrap();
    let vm = scene.vm("[nic.net]\n");
    let shown = identity_of(&scene.settings, &vm, &facts).unwrap();
    assert!(!scene.settings.paths().identity().exists());
    let made = scene.prepare(vm).unwrap().identity;
    assert_eq!((shown.uuid, shown.macs), (made.uuid.clone(), made.macs.clone()));
    // A new NIC gets an address, those of the others stay.
    let vm = scene.vm("[nic.net]\n[nic.lan]\n");
    let shown = identity_of(&scene.settings, &vm, &facts).unwrap();
    assert_eq!(shown.macs.len(), 2);
    assert!(made.macs.iter().all(|(nic, mac)| shown.macs[nic] == *mac));
}

#[test]
fn instance_is_renewed_where_there_is_one() {
    let scene = Scene::new();
    let cancel = Cancel::default();
    let waiter = || Waiter { cancel: &cancel, say: &|_| () };
    assert_eq!(renew_instance(&scene.settings, waiter()).unwrap(), None);
    let before = scene.prepare(scene.vm("")).unwrap().identity;
    let mut settings = scene.settings.clone();
    settings.uuid = || "00000000-0000-4000-8000-000000000001".into();
    let (old, new) = renew_instance(&settings, waiter()).unwrap().unwrap();
    assert_eq!(old, before.instance_id);
    assert_ne!(new, old);
    let after = identity_store::read(&settings.paths()).unwrap().unwrap();
    assert_eq!((after.instance_id, after.uuid), (new, before.uuid));
}

#[test]
fn disk_file_follows_what_exists() {
    let scene = Scene::new();
    let paths = scene.settings.paths();
    fs::create_dir_all(&paths.state).unwrap();
    let vm = vm("[disk.root]\nsize = \"1G\"\n");
    let disk = &vm.disks[0];
    let file = disk_file(&paths, disk);
    assert_eq!((&file.path, file.format), (&paths.disk(&disk.name, disk.format), disk.format));
    // The format was another one when the disk was made.
    let other = if disk.format == Format::Raw { Format::Qcow2 } else { Format::Raw };
    fs::write(paths.disk(&disk.name, other), "").unwrap();
    assert_eq!(disk_file(&paths, disk).format, other);
    fs::write(paths.disk(&disk.name, disk.format), "").unwrap();
    assert_eq!(disk_file(&paths, disk).format, disk.format);
    assert!(!disk_file(&paths, disk).is_device);
}

#[test]
fn bios_needs_no_firmware_file() {
    let none =
        firmware_for(None, Path::new("/nowhere/qemu"), &vm("vcpu = 1\n"), "pc-q35-8.2").unwrap();
    assert!(none.is_none());
}

#[test]
fn qemu_img_is_that_of_the_same_package() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = dir.path().join("qemu-system-x86_64");
    assert_eq!(qemu_img_beside(&qemu), Path::new("qemu-img"));
    let beside = dir.path().join("qemu-img");
    fs::write(&beside, "").unwrap();
    assert_eq!(qemu_img_beside(&qemu), beside);
}

#[test]
fn progress_is_one_line_every_few_seconds() {
    let messages = Mutex::new(vec![]);
    let say = |text: String| messages.lock().unwrap().push(text);
    let mut lines = ProgressLines { say: &say, last: None };
    let at =
        At { doing: crate::sys::progress::Doing::Copying, what: "root", done: 1, total: Some(2) };
    lines.at(&at);
    lines.at(&at);
    lines.note("a note");
    assert_eq!(messages.lock().unwrap().len(), 2, "{messages:?}");
    lines.last = std::time::Instant::now().checked_sub(SAY_EVERY);
    lines.at(&at);
    let messages = messages.into_inner().unwrap();
    assert_eq!((messages.len(), messages[1].as_str()), (3, "a note"));
    assert_eq!(messages[0], messages[2]);
}
