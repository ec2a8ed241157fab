//! Inspects the host and all VM files for `qvm doctor`. Changes nothing and requires no privileges:
//! what cannot be read becomes a finding.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    probe::{br_netfilter, bridge, file_system, kernel_module::Modules, kvm_module},
    rules::{
        Complaint, DiskSeen, Firewall, NEEDED, Network, QemuSeen, Seen, Unit, VmSeen, iptables,
        nft, units,
    },
};
use crate::{
    control::types::State,
    image::qcow2,
    machine::probe::{self, Probe},
    spec::{self, Disk, Format, HostSettings, Invalid, Link, Problem, Source, Vm},
    store::layout::{Layout, VmPaths},
    sys::{
        cgroup, file,
        program::{Output, Program},
    },
    systemd::unit::{Scope, unit_name},
    value::{Explain, IfName, VmName, chain},
};
use crate::{
    fleet::inventory::{Entry, inventory},
    store::identity_store,
    supervisor::start::{admission, isolate, prepare},
    sys::storage_reader::{self, StorageReader},
};

/// The time limit of a program of the host.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The output limit of a program of the host, in bytes.
const OUTPUT_LIMIT: usize = 4 << 20;

/// The sources of an inspection.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The directories of VM files, state and sockets.
    pub layout: &'a Layout,
    /// The parent of `/dev`, `/proc` and `/sys`; `/` except in tests.
    pub root: &'a Path,
    /// `QVM_QEMU`.
    pub qemu: Option<&'a OsStr>,
    /// `PATH`.
    pub search_path: Option<&'a OsStr>,
    /// `$XDG_CONFIG_HOME` of an unprivileged user.
    pub config_home: Option<&'a Path>,
    /// The systemd manager whose units use the directories of `layout`, if there is one.
    pub manager: Option<Scope>,
}

/// Inspects everything.
pub async fn inspect(from: &Sources<'_>) -> Seen {
    let storage = StorageReader::default();
    let (file, cache) = (from.layout.host_settings(), from.layout.facts_cache());
    let state = from.layout.state.clone();
    let settings = storage.read(&from.layout.host_settings(), move |_| HostSettings::load(&file));
    let cached = storage.read(&from.layout.facts_cache(), move |_| file::read(&cache).map(drop));
    let disk_space =
        storage.read(&from.layout.state, move |_| file_system::disk_space(&state).ok());
    // In parallel, because each may reach its time limit.
    let entries = inventory(&storage, from.layout, &[]);
    let (Files { written, mut problems }, settings, cached, disk_space, entries) =
        tokio::join!(files(from.layout, &storage), settings, cached, disk_space, entries);
    let disk_space = disk_space.ok().flatten();
    let settings = settings
        .unwrap_or_else(|error| Err(no_answer(&from.layout.host_settings(), &error).into()));
    let settings = settings.unwrap_or_else(|Invalid(all)| {
        problems.extend(all);
        HostSettings::absent(&from.layout.host_settings())
    });
    problems.extend(entries.iter().filter_map(|entry| unlisted(from.layout, entry)));
    let user = |entry: &Entry| entry.status.isolation.as_ref().and_then(|isolation| isolation.uid);
    let running: BTreeMap<VmName, Option<u32>> = entries
        .iter()
        .filter(|entry| entry.status.pid.is_some() || entry.status.state == State::Unknown)
        .filter_map(|entry| Some((entry.name.parse().ok()?, user(entry))))
        .collect();
    let mut unknown: BTreeMap<VmName, Complaint> = entries
        .iter()
        .filter(|entry| entry.status.state == State::Unknown)
        .filter_map(|entry| Some((entry.name.parse().ok()?, complaint(entry)?)))
        .collect();
    let mut names: BTreeSet<VmName> = written.iter().map(|vm| vm.name.clone()).collect();
    names.extend(entries.iter().filter_map(|entry| entry.name.parse::<VmName>().ok()));
    // Without a cache file, QEMU is probed and the result is not stored.
    let cache = cached.map_or_else(|_| PathBuf::new(), |_| from.layout.facts_cache());
    let probe = Probe {
        qemu: from.qemu,
        path: from.search_path,
        cache: &cache,
        write: prepare::write_facts,
        root: from.root,
        deadline: probe::DEADLINE,
    };
    let qemu = qemu(&probe);
    let known = Arc::new(qemu.as_ref().ok().cloned());
    let vms = names.into_iter().map(|name| {
        let written = written.iter().find(|vm| vm.name == name).cloned();
        let (runs, user) = (running.contains_key(&name), running.get(&name).copied().flatten());
        let unknown = unknown.remove(&name);
        let (qemu, config_home) = (known.clone(), from.config_home.map(Path::to_owned));
        let inspection =
            VmInspection { layout: from.layout.clone(), name, written, runs, qemu, config_home };
        let blank = VmSeen { user, unknown, ..inspection.unread() };
        let state = from.layout.vm(&blank.name).state;
        let read = storage.read(&state, move |_| inspection.vm());
        async move {
            match read.await {
                Ok(seen) => VmSeen { user: blank.user, unknown: blank.unknown, ..seen },
                Err(error) => {
                    let why = Complaint { what: error.to_string(), hint: error.hint() };
                    VmSeen { unknown: blank.unknown.or(Some(why)), ..blank }
                }
            }
        }
    });
    let vms = join_all(vms).await;
    let beside = qemu.as_ref().ok().map(|seen| prepare::qemu_img_beside(&seen.qemu.binary));
    let found = beside.is_some_and(|path| path.is_absolute()) || from.program("qemu-img").is_some();
    let isolation = qemu.as_ref().ok().map(|seen| {
        isolate::probe(&seen.qemu, from.root, settings.uid_range)
            .map_err(|error| Complaint { what: chain(&error), hint: error.hint() })
    });
    Seen {
        isolation,
        kvm: kvm_module::read(from.root, probe::kvm(from.root)),
        cgroups: cgroup::inspect(from.root, from.manager == Some(Scope::User)),
        qemu,
        qemu_img: found,
        network: network(from, &written),
        disk_space,
        memory: admission::memory(from.root, &settings),
        admission: settings.admission,
        units: from.manager.map(|scope| from.units(scope, &written)),
        vms,
        problems,
    }
}

/// The VM files and their problems.
struct Files {
    written: Vec<Vm>,
    problems: Vec<Problem>,
}

/// Validates all VM files, as `qvm check` does.
async fn files(layout: &Layout, storage: &StorageReader) -> Files {
    let (mut written, mut problems, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    let dir = layout.vm_files();
    let listed = storage.read(&layout.vm_files(), move |_| spec::files_in(&dir));
    let listed = listed.await.unwrap_or_else(|e| Err(no_answer(&layout.vm_files(), &e).into()));
    let listed = listed.unwrap_or_else(|Invalid(all)| {
        problems.extend(all);
        vec![]
    });
    let read = |file: PathBuf| {
        let vm = storage.read(&file, {
            let file = file.clone();
            move |_| spec::load(&file)
        });
        async move {
            let vm = vm.await.unwrap_or_else(|error| Err(no_answer(&file, &error).into()));
            (file, vm)
        }
    };
    for (file, vm) in join_all(listed.into_iter().map(read)).await {
        match vm {
            Ok(vm) => written.push(vm),
            Err(Invalid(all)) => {
                problems.extend(all);
                unread.extend(spec::name_of(&file));
            }
        }
    }
    let all: Vec<&Vm> = written.iter().collect();
    problems.extend(spec::check::across(&all, &unread));
    Files { written, problems }
}

fn qemu(probe: &Probe<'_>) -> Result<QemuSeen, Complaint> {
    let facts = probe.facts().map_err(|e| Complaint { what: chain(&e), hint: e.hint() })?;
    // Without the list no finding names a machine type: QEMU itself refuses an unknown one.
    let machines = probe.machines(&facts.qemu.binary).unwrap_or_default();
    Ok(QemuSeen { qemu: facts.qemu, machines })
}

/// The problem of a file whose storage does not answer.
fn no_answer(file: &Path, error: &storage_reader::Error) -> Problem {
    Problem::of_file(file, error.to_string(), error.hint())
}

/// The problem of a directory of VMs that cannot be listed; the directory of VM files is reported
/// elsewhere.
fn unlisted(layout: &Layout, entry: &Entry) -> Option<Problem> {
    let dir = [layout.vm_states(), layout.runtime.clone()]
        .into_iter()
        .find(|dir| dir.as_os_str() == OsStr::new(&entry.name))?;
    let Complaint { what, hint } = complaint(entry)?;
    Some(Problem::of_file(&dir, what, hint))
}

/// An inspection of the files of one VM.
struct VmInspection {
    layout: Layout,
    name: VmName,
    written: Option<Vm>,
    runs: bool,
    qemu: Arc<Option<QemuSeen>>,
    config_home: Option<PathBuf>,
}

impl VmInspection {
    /// Returns the findings' data without the VM's files.
    fn unread(&self) -> VmSeen {
        VmSeen {
            name: self.name.clone(),
            written: self.written.clone(),
            booted: None,
            runs: self.runs,
            unknown: None,
            user: None,
            identity: Ok(None),
            firmware: Ok(()),
            disks: vec![],
        }
    }

    /// Returns the findings' data. Blocks as long as the storage does.
    fn vm(&self) -> VmSeen {
        let Self { layout, name, written, runs, qemu, config_home } = self;
        let paths = layout.vm(name);
        let booted =
            runs.then(|| crate::store::vm_file_copies::booted(&paths, name, &layout.vm_file(name)));
        let booted = booted.flatten().map(|(vm, _)| vm);
        let identity = identity_store::read(&paths);
        let identity = identity.map_err(|e| Complaint { what: chain(&e), hint: e.hint() });
        let firmware = match (written, &**qemu) {
            (Some(vm), Some(seen)) => {
                let pinned = identity.as_ref().ok().and_then(Option::as_ref);
                let machine = pinned.map_or(&seen.qemu.machine, |identity| &identity.machine);
                prepare::firmware_for(config_home.as_deref(), &seen.qemu.binary, vm, machine)
                    .map(drop)
                    .map_err(|e| Complaint { what: chain(&e), hint: e.hint() })
            }
            _ => Ok(()),
        };
        let disks = written.as_ref().or(booted.as_ref()).map(|vm| &vm.disks);
        let disks = disks.into_iter().flatten().filter_map(|one| disk(&paths, one)).collect();
        VmSeen { booted, identity, firmware, disks, ..self.unread() }
    }
}

/// Returns the problem of a VM in the inventory.
fn complaint(entry: &Entry) -> Option<Complaint> {
    let problem = entry.problem.as_ref()?;
    Some(Complaint { what: problem.what.clone(), hint: problem.hint.clone() })
}

/// Returns a disk that qvm created; `None` if its size is unknown, as before its image is
/// downloaded.
fn disk(paths: &VmPaths, disk: &Disk) -> Option<DiskSeen> {
    if matches!(disk.source, Source::File(_) | Source::Device(_)) {
        return None;
    }
    let file = prepare::disk_file(paths, disk);
    let wanted = disk.size.map(|size| size.bytes());
    let Some(metadata) = file::metadata(&file.path).ok().flatten() else {
        return wanted.map(|virtual_size| DiskSeen { virtual_size, allocated: 0 });
    };
    let virtual_size = match file.format {
        Format::Raw => metadata.len(),
        Format::Qcow2 => {
            let head = file::read_at(&file.path, 0, qcow2::HEAD).ok()?;
            qcow2::Header::parse(&head).ok()?.virtual_size
        }
    };
    // st_blocks counts units of 512 bytes on every file system (inode(7)).
    let allocated = metadata.blocks().saturating_mul(512);
    Some(DiskSeen { virtual_size: virtual_size.max(wanted.unwrap_or(0)), allocated })
}

fn network(from: &Sources<'_>, written: &[Vm]) -> Network {
    let sys = from.root.join("sys");
    let names: BTreeSet<&IfName> = written
        .iter()
        .flat_map(|vm| &vm.nics)
        .filter_map(|nic| match &nic.link {
            Link::Bridge { bridge, .. } => Some(bridge),
            Link::User { .. } => None,
        })
        .collect();
    if names.is_empty() {
        return Network::default();
    }
    let modules = Modules::read(from.root);
    Network {
        filter_modules: NEEDED
            .map(|name| {
                let depends =
                    |program: PathBuf| output(&program, &["--show-depends", "--quiet", name]);
                modules.state(name, || from.program("modprobe").map(depends))
            })
            .into(),
        bridges: names.into_iter().map(|name| (name.clone(), bridge::read(&sys, name))).collect(),
        netfilter: br_netfilter::read(&from.root.join("proc")),
        firewalls: from.firewalls(),
    }
}

impl Sources<'_> {
    /// Returns a program on `PATH`, else in the system directories that a user's `PATH` lacks.
    fn program(&self, name: &str) -> Option<PathBuf> {
        probe::on_path(OsStr::new(name), self.search_path).or_else(|| {
            let places = ["usr/sbin", "sbin"].map(|dir| self.root.join(dir).join(name));
            places.into_iter().find(|path| path.is_file())
        })
    }

    fn firewalls(&self) -> Vec<Firewall> {
        let list =
            |name: &str, arguments: &[&str], read: &dyn Fn(&str) -> Result<Vec<_>, String>| {
                let program = self.program(name)?;
                let version = output(&program, &["--version"]);
                let dropping = output(&program, arguments).and_then(|output| read(&output));
                let version = version.ok().and_then(|text| Some(text.lines().next()?.to_owned()));
                let version = version.unwrap_or_else(|| name.to_owned());
                Some(Firewall { program: name.to_owned(), version, dropping })
            };
        let all = [
            list("nft", &["-j", "list", "chains"], &nft),
            list("iptables", &["-S", "FORWARD"], &|output| Ok(iptables(output, "iptables"))),
            list("ip6tables", &["-S", "FORWARD"], &|output| Ok(iptables(output, "ip6tables"))),
        ];
        all.into_iter().flatten().collect()
    }

    /// Returns the units of these VMs from one call.
    fn units(&self, scope: Scope, written: &[Vm]) -> Result<Vec<Unit>, Complaint> {
        let complaint = |what: String| Complaint { what, hint: None };
        let program = self.program("systemctl");
        let program =
            program.ok_or_else(|| complaint("cannot find `systemctl` on PATH".to_owned()))?;
        if written.is_empty() {
            return Ok(Vec::new());
        }
        let property = format!("--property={}", Unit::PROPERTIES);
        let names: Vec<String> = written.iter().map(|vm| unit_name(&vm.name)).collect();
        let mut arguments = vec!["--no-pager", "show", property.as_str()];
        if scope == Scope::User {
            arguments.insert(0, "--user");
        }
        arguments.extend(names.iter().map(String::as_str));
        output(&program, &arguments).map(|text| units(&text)).map_err(complaint)
    }
}

/// Runs a program and returns its standard output.
fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let program =
        Program::new(program).args(arguments).time_limit(TIME_LIMIT).output_limit(OUTPUT_LIMIT);
    program.run().and_then(Output::success).map_err(|e| chain(&e))
}
