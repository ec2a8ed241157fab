//! QEMU's command line: byte for byte for each example, and accepted by a real QEMU. `QVM_BLESS=1
//! cargo test --test it machine::argv` rewrites the golden files; review the difference before
//! committing it.

use std::{
    collections::BTreeSet,
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use qvm::{
    machine::{
        argv::{self, Machine},
        disk_file::DiskFile,
        facts::Accelerator,
        fd,
        firmware::SelectedFirmware,
    },
    spec::{self, Firmware, Format, Link, Vm},
    store::{identity::Identity, layout::Layout},
    supervisor::start::prepare::disk_file,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The examples, by name.
fn examples() -> Vec<Vm> {
    let files = spec::files_in(&root().join("examples")).unwrap();
    assert!(files.len() >= 9, "only {} examples", files.len());
    files.iter().map(|file| spec::load(file).unwrap()).collect()
}

fn layout() -> Layout {
    Layout { config: "/etc/qvm".into(), state: "/var/lib/qvm".into(), runtime: "/run/qvm".into() }
}

fn identity(vm: &Vm, machine: &str) -> Identity {
    let uuid = "01234567-89ab-4cde-8f01-23456789abcd";
    let mut identity = Identity::new(vm, uuid.to_owned(), "0000", machine);
    identity.add_macs(vm, "the-host", &BTreeSet::new());
    identity
}

/// The firmware of a Debian host.
fn firmware(vm: &Vm) -> Option<SelectedFirmware> {
    let secure = vm.firmware == Firmware::UefiSecure;
    let kind = if secure { "_4M.ms" } else { "_4M" };
    (vm.firmware != Firmware::Bios).then(|| SelectedFirmware {
        descriptor: "/usr/share/qemu/firmware/any.json".into(),
        code: format!("/usr/share/OVMF/OVMF_CODE{kind}.fd").into(),
        code_format: Format::Raw,
        vars_template: Some(format!("/usr/share/OVMF/OVMF_VARS{kind}.fd").into()),
        vars_format: Format::Raw,
        memory: false,
        smm: secure,
        secure,
    })
}

#[test]
fn every_example_has_exactly_its_command_line() {
    let golden = root().join("tests/golden/argv");
    let mut wrong = vec![];
    for vm in examples() {
        let (identity, paths) = (identity(&vm, "pc-q35-10.0"), layout().vm(&vm.name));
        let disks: Vec<DiskFile> = vm.disks.iter().map(|disk| disk_file(&paths, disk)).collect();
        let firmware = firmware(&vm);
        let machine = Machine {
            vm: &vm,
            identity: &identity,
            paths: &paths,
            accel: Accelerator::Kvm,
            vhost_net: true,
            disks: &disks,
            firmware: firmware.as_ref(),
            restores: false,
            sandbox: true,
        };
        let got = argv::argv(&machine).unwrap().arguments;
        assert!(got.iter().all(|argument| !argument.contains('\n')));
        let got = got.join("\n") + "\n";
        let file = golden.join(format!("{}.argv", vm.name));
        if std::env::var_os("QVM_BLESS").is_some() {
            fs::create_dir_all(&golden).unwrap();
            fs::write(&file, &got).unwrap();
        }
        if fs::read_to_string(&file).ok().as_ref() != Some(&got) {
            wrong.push(format!("{}:\n{got}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "not as in the golden file:\n{}", wrong.join("\n"));
    // A golden file without an example is an error.
    let files = fs::read_dir(&golden).unwrap().count();
    assert_eq!(files, examples().len(), "golden files without an example");
}

/// A QEMU that ends with the test.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts QEMU with a VM whose disks use small files in `dir` and whose NICs use the user-mode
/// network, queries its monitor, and lets it quit.
fn qemu_takes(vm: &Vm, dir: &Path, directories: [&str; 3], firmware: Option<&SelectedFirmware>) {
    let mut vm = vm.clone();
    for nic in &mut vm.nics {
        nic.link = Link::User { forward: vec![] };
    }
    let [config, state, runtime] = directories.map(|name| dir.join(name));
    let paths = Layout { config, state, runtime }.vm(&vm.name);
    fs::create_dir_all(&paths.state).unwrap();
    fs::create_dir_all(&paths.runtime).unwrap();
    let file = |disk: &spec::Disk| {
        let path = paths.state.join(format!("{}.img", disk.name));
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        DiskFile {
            path,
            format: Format::Raw,
            is_device: false,
            backing: vec![],
            sector_size: spec::SectorSize::B512,
        }
    };
    let disks: Vec<DiskFile> = vm.disks.iter().map(file).collect();
    fs::write(paths.seed(), vec![0; 1 << 20]).unwrap();
    if let Some(template) = firmware.and_then(|chosen| chosen.vars_template.as_ref()) {
        fs::copy(template, paths.efi_vars()).unwrap();
    }
    vm.mem = "256M".parse().unwrap();
    vm.vcpu = 2;
    let identity = identity(&vm, "q35");
    let machine = Machine {
        vm: &vm,
        identity: &identity,
        paths: &paths,
        accel: Accelerator::Tcg,
        vhost_net: false,
        disks: &disks,
        firmware,
        restores: false,
        sandbox: true,
    };
    let sockets = [
        (paths.qmp_socket(), fd::QMP),
        (paths.agent_socket(), fd::AGENT),
        (paths.serial_socket(), fd::SERIAL),
    ];
    let line = argv::argv(&machine).unwrap();
    let sockets = sockets.iter().map(|(path, number)| FdMapping {
        parent_fd: OwnedFd::from(UnixListener::bind(path).unwrap()),
        child_fd: *number,
    });
    let files = line.files.iter().map(|handed| FdMapping {
        parent_fd: fs::File::options()
            .read(true)
            .write(handed.access.write)
            .open(&handed.path)
            .unwrap()
            .into(),
        child_fd: handed.set,
    });
    let mappings = sockets.chain(files);
    let mut command = Command::new("qemu-system-x86_64");
    command.args(line.arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command.fd_mappings(mappings.collect()).unwrap();
    let said = paths.runtime.join("stderr");
    command.stderr(fs::File::create(&said).unwrap());
    let mut qemu = Qemu(command.spawn().unwrap());
    drop(command);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answered: Result<(), qmp::Error> = runtime.block_on(async {
        let session = qmp::connect(&paths.qmp_socket(), crate::lab::LONG).await?;
        let status = session.client.query_status(Duration::from_secs(30)).await?;
        assert_eq!(status, "prelaunch", "-S was given");
        session.client.quit(Duration::from_secs(30)).await
    });
    let told = || fs::read_to_string(&said).unwrap();
    assert!(answered.is_ok(), "{}: {answered:?}\n{}", vm.name, told());
    crate::lab::until("QEMU quits", || qemu.0.try_wait().unwrap().is_some());
    assert!(qemu.0.wait().unwrap().success(), "{}: {}", vm.name, told());
    let warned = told();
    assert!(!warned.contains("warning") && !warned.contains("error"), "{}: {warned}", vm.name);
}

/// Whether QEMU is installed.
fn qemu() -> bool {
    let there = Command::new("qemu-system-x86_64").arg("-version").output().is_ok();
    assert!(there || !crate::lab::required("qemu"), "QEMU is not installed");
    there
}

/// The firmware of this host, if it has one.
fn installed(vm: &Vm) -> Option<Option<SelectedFirmware>> {
    let Some(chosen) = firmware(vm) else { return Some(None) };
    let there = chosen.code.exists() && chosen.vars_template.as_ref().unwrap().exists();
    assert!(there || !crate::lab::required("ovmf"), "{} is not installed", chosen.code.display());
    there.then_some(Some(chosen))
}

#[test]
fn qemu_accepts_every_example() {
    if !qemu() {
        return;
    }
    for vm in examples() {
        let Some(firmware) = installed(&vm) else { continue };
        let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
        qemu_takes(&vm, dir.path(), ["c", "s", "r"], firmware.as_ref());
    }
}

fn read(text: &str) -> Vm {
    let file = PathBuf::from("/etc/qvm/vms/full.toml");
    spec::read(&"full".parse().unwrap(), &file, text, &mut |_| unreachable!()).unwrap()
}

#[test]
fn qemu_accepts_maximum_disks_and_nics() {
    if !qemu() {
        return;
    }
    for (root, on_pci, on_sata) in [("virtio", 7, 5), ("sata", 8, 4), ("nvme", 7, 5)] {
        let mut text = format!("[disk.root]\nbus = \"{root}\"\n[cloudInit]\n");
        for nr in 0..on_pci {
            let bus = ["virtio", "nvme"][nr % 2];
            text.push_str(&format!("[disk.p{nr}]\nsize = \"1M\"\nbus = \"{bus}\"\n"));
        }
        for nr in 0..on_sata {
            text.push_str(&match nr % 2 {
                0 => format!("[disk.s{nr}]\nsize = \"1M\"\nbus = \"sata\"\n"),
                _ => format!("[disk.s{nr}]\npath = \"{nr}.iso\"\nmedia = \"cdrom\"\n"),
            });
        }
        for nr in 0..8 {
            let model = ["virtio", "e1000e"][nr % 2];
            text.push_str(&format!("[nic.n{nr}]\nmodel = \"{model}\"\n"));
        }
        let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
        qemu_takes(&read(&text), dir.path(), ["c", "s", "r"], None);
    }
}

#[test]
fn qemu_accepts_special_characters_in_paths() {
    if !qemu() {
        return;
    }
    let hostile = "a, b=c'd\"e\\f%g;h:i $(j) \u{e9}\u{1F980}\nk";
    let mut vm = read("vcpu = 1\n[disk.data]\nsize = \"1M\"\n[cloudInit]\n");
    vm.firmware = Firmware::Uefi;
    let Some(firmware) = installed(&vm) else { return };
    let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
    // The length of socket paths is limited; QEMU gets descriptors instead of paths.
    qemu_takes(&vm, dir.path(), ["c", hostile, "r,r=r"], firmware.as_ref());
}

/// QEMU has no listening sockets: it receives the connections of viewers.
#[test]
fn screen_is_served_by_the_supervisor() {
    for (display, served) in [
        ("", false),
        ("[display]\n", false),
        ("[display]\nvnc = \"unix\"\n", true),
        ("[display]\nvnc = \"127.0.0.1:5901\"\npasswordFile = \"p\"\n", true),
    ] {
        let vm = read(&format!("vcpu = 1\n{display}"));
        let paths = layout().vm(&vm.name);
        let disks: Vec<DiskFile> = vm.disks.iter().map(|disk| disk_file(&paths, disk)).collect();
        let machine = Machine {
            vm: &vm,
            identity: &identity(&vm, "pc-q35-10.0"),
            paths: &paths,
            accel: Accelerator::Tcg,
            vhost_net: false,
            disks: &disks,
            firmware: None,
            restores: false,
            sandbox: false,
        };
        let arguments = argv::argv(&machine).unwrap().arguments;
        let vnc = arguments.iter().position(|word| word == "-vnc").map(|at| &arguments[at + 1]);
        assert_eq!(vnc.map(String::as_str), served.then_some("none,password=on"), "{display}");
        if served && qemu() {
            let dir = tempfile::Builder::new().prefix("qvm").tempdir_in("/tmp").unwrap();
            qemu_takes(&vm, dir.path(), ["c", "s", "r"], None);
        }
    }
}

/// The inherited descriptors have the numbers of the command line, and there are no others.
#[test]
fn descriptor_numbers_are_unique() {
    let mut numbers = vec![fd::QMP, fd::AGENT, fd::SERIAL];
    for index in 0..Vm::MAX_NICS {
        numbers.extend([fd::tap(index), fd::vhost(index)]);
    }
    let most = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), most);
    assert!(numbers.iter().all(|number| *number > std::io::stderr().as_raw_fd()));
}
