//! Reads, chooses and writes identities, unique among all VMs of the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::de::Error as _;

pub use super::identity_error::Error;
use super::{
    identity::{Identity, free_uid},
    layout::{Layout, VmPaths},
};
use super::{
    identity_lock::{IdentityLock, Waiter},
    running::{self, PreviousQemu},
};
use crate::sys::storage_reader;
use crate::{
    spec::{HostSettings, Vm},
    sys::file,
    value::{MacAddr, UidRange, VmName},
};

/// The sources of new identities.
#[derive(Debug, Clone)]
pub struct IdentitySource {
    /// The directories of all VMs.
    pub layout: Layout,
    /// The unique ID of this host (machine-id(5)).
    pub host_id: String,
    /// Generates a random UUID.
    pub uuid: fn() -> String,
}

/// Returns the identity of a VM, if it exists.
///
/// # Errors
/// The identity exists and cannot be read.
pub fn read(paths: &VmPaths) -> Result<Option<Identity>, Error> {
    let path = paths.identity();
    let Some(bytes) = file::read(&path)? else { return Ok(None) };
    // Invalid values would become part of QEMU's command line.
    let sound = |identity: Identity| match identity.flaw() {
        Some(key) => Err(toml::de::Error::custom(format!("invalid value of `{key}`"))),
        None => Ok(identity),
    };
    let read = toml::from_str(&String::from_utf8_lossy(&bytes)).and_then(sound);
    let wrong =
        |source| Error::Content { path: path.display().to_string(), source: Box::new(source) };
    read.map(Some).map_err(wrong)
}

/// Writes the identity of a VM.
///
/// # Errors
/// The file cannot be written.
pub fn write(paths: &VmPaths, identity: &Identity) -> Result<(), Error> {
    Ok(file::write(&paths.identity(), toml::to_string(identity)?.as_bytes(), 0o600)?)
}

/// Returns the identity of a VM with an address for each of its NICs and, if `wants_user`, a UID
/// that no other VM has. Missing values are chosen and written under the identity lock: otherwise
/// two VMs could choose the same value, and one of two concurrent changes would be lost.
///
/// # Errors
/// The identity cannot be read or written, no UID is free, or another process holds the lock.
pub fn ensure(
    source: &IdentitySource,
    vm: &Vm,
    machine: &str,
    wants_user: bool,
    waiter: Waiter<'_>,
) -> Result<Identity, Error> {
    let paths = source.layout.vm(&vm.name);
    if let Some(identity) = read(&paths)?
        && !wants_user
        && !identity.lacks_macs(vm)
    {
        return Ok(identity);
    }
    let lock = IdentityLock::acquire(&source.layout, waiter)?;
    let (mut identity, mut changed) = match read(&paths)? {
        None => (new(source, vm, machine)?, true),
        Some(mut identity) => {
            let changed = identity.lacks_macs(vm);
            if changed {
                complete(&mut identity, source, vm)?;
            }
            (identity, changed)
        }
    };
    if wants_user {
        changed |= choose_user(&mut identity, &source.layout, &vm.name, &lock)?;
    }
    if changed {
        write(&paths, &identity)?;
    }
    Ok(identity)
}

/// Changes an existing identity under the identity lock; `None` if there is none.
///
/// # Errors
/// The identity cannot be read or written, or another process holds the lock.
pub fn change<T>(
    layout: &Layout,
    paths: &VmPaths,
    waiter: Waiter<'_>,
    change: impl FnOnce(&mut Identity) -> T,
) -> Result<Option<T>, Error> {
    let _lock = IdentityLock::acquire(layout, waiter)?;
    // Remove the leftover of a killed change, which would otherwise remain until the next start.
    file::remove_abandoned_beside(&paths.identity());
    let Some(before) = read(paths)? else { return Ok(None) };
    let mut after = before.clone();
    let done = change(&mut after);
    if after != before {
        write(paths, &after)?;
    }
    Ok(Some(done))
}

/// Returns a new identity with this machine type. To write it, the caller holds the identity lock.
///
/// # Errors
/// The directory of all VMs' state cannot be read.
pub fn new(source: &IdentitySource, vm: &Vm, machine: &str) -> Result<Identity, file::Error> {
    let mut identity = Identity::new(vm, (source.uuid)(), &(source.uuid)(), machine);
    complete(&mut identity, source, vm)?;
    Ok(identity)
}

/// Derives unique addresses for the NICs without one.
///
/// # Errors
/// The directory of all VMs' state cannot be read.
pub fn complete(
    identity: &mut Identity,
    source: &IdentitySource,
    vm: &Vm,
) -> Result<(), file::Error> {
    let others = others(&source.layout, &vm.name)?;
    let taken: BTreeSet<MacAddr> = others.iter().flat_map(|(_, other)| other.macs()).collect();
    identity.add_macs(vm, &source.host_id, &taken);
    Ok(())
}

/// Assigns a VM a UID of the host's range that no other VM has, unless it has a valid one. Returns
/// true if the identity changed.
///
/// # Errors
/// No UID is free, the UIDs in use are not known, or a directory of all VMs cannot be read.
fn choose_user(
    identity: &mut Identity,
    layout: &Layout,
    vm: &VmName,
    _lock: &IdentityLock,
) -> Result<bool, Error> {
    // Invalid settings were reported before the start. They do not change the UID of a VM.
    let settings = HostSettings::load(&layout.host_settings());
    let (range, is_known) =
        settings.map_or_else(|_| (UidRange::default(), false), |found| (found.uid_range, true));
    let Users { taken, unknown } = users_of_others(layout, vm)?;
    let lost = match identity.uid {
        Some(uid) if is_known && !range.contains(uid) => {
            Some(format!("the UID {uid} of its identity.toml is not in `uidRange` ({range})"))
        }
        Some(uid) => match taken.get(&uid) {
            Some(other) => Some(format!("its UID {uid} is also that of `{other}`")),
            None => return Ok(false),
        },
        None => None,
    };
    if let Some(other) = unknown {
        return Err(Error::UnknownUser(other));
    }
    let uid = free_uid(range, &taken.into_keys().collect()).ok_or(Error::NoUser(range))?;
    identity.uid = Some(uid);
    if let Some(why) = lost {
        tracing::warn!("{why}: QEMU runs with UID {uid} from now on");
    }
    Ok(true)
}

/// The UIDs of the other VMs.
struct Users {
    /// Each UID with one of its VMs.
    taken: BTreeMap<u32, VmName>,
    /// A VM that may be running with an unknown UID.
    unknown: Option<VmName>,
}

/// Returns the UIDs of other VMs: from their identities, from the owners of their files (an
/// identity may be unreadable), and from running QEMU processes.
///
/// # Errors
/// The state directory or the run directory of all VMs cannot be read.
fn users_of_others(layout: &Layout, own: &VmName) -> Result<Users, file::Error> {
    let (mut users, mut unknown) = (BTreeMap::new(), None);
    let root = rustix::process::geteuid().as_raw();
    // A regular file in the run directory is not a VM.
    let is_other = |name: &VmName| name != own && !layout.runtime.join(name).is_file();
    let others = |dir: &Path| -> Result<(Vec<VmName>, Vec<PathBuf>), file::Error> {
        let names: Vec<VmName> = names(file::list(dir)?).filter(is_other).collect();
        let states = names.iter().map(|name| layout.vm(name).state).collect();
        Ok((names, states))
    };
    // During a rename, a symbolic link has one of the names.
    let own_place = fs::canonicalize(layout.vm(own).state).ok();
    let is_own =
        move |state: &Path| own_place.is_some() && fs::canonicalize(state).ok() == own_place;
    let (of_states, states) = others(&layout.vm_states())?;
    let read = move |state: &Path| if is_own(state) { vec![] } else { users_of_files(state) };
    for (name, uids) in of_states.into_iter().zip(storage_reader::read_each(&states, read)) {
        match uids {
            Ok(uids) => uids.into_iter().for_each(|uid| {
                users.entry(uid).or_insert_with(|| name.clone());
            }),
            Err(_) => unknown = Some(name),
        }
    }
    let processes = running::Processes::default();
    let (of_runtime, states) = others(&layout.runtime)?;
    let of = layout.clone();
    // A QEMU process without a record has the UID of its identity or its files, if these exist.
    // Then no scan of /proc is required.
    let known: BTreeSet<VmName> = users
        .iter()
        .filter(|(uid, _)| **uid != root)
        .map(|(_, vm): (_, &VmName)| vm.clone())
        .collect();
    let is_known = known.clone();
    let found = storage_reader::read_each(&states, move |state| {
        let name = named(state)?;
        let paths = of.vm(&name);
        Some(if is_known.contains(&name) {
            running::find_without_scan(&paths)
        } else {
            running::find_among(&paths, &processes)
        })
    });
    for (name, found) in of_runtime.into_iter().zip(found) {
        match found {
            Ok(Some(Ok(PreviousQemu::Running(_, record)))) => {
                if let Some(uid) = record.isolation.and_then(|isolation| isolation.uid) {
                    users.entry(uid).or_insert(name);
                }
            }
            Ok(Some(Ok(_))) => {}
            _ if known.contains(&name) => {}
            _ => unknown = Some(name),
        }
    }
    Ok(Users { taken: users, unknown })
}

/// Returns the owners of the files in a VM's state directory, and the UID of its identity.
fn users_of_files(state: &Path) -> Vec<u32> {
    let identity = VmPaths { state: state.to_owned(), runtime: PathBuf::new() }.identity();
    let kept = fs::read_to_string(identity).ok().and_then(|text| kept_uid(&text));
    let files = file::list(state).unwrap_or_default();
    let owners = files.iter().filter_map(|path| Some(fs::metadata(path).ok()?.uid()));
    owners.chain(kept).collect()
}

/// Returns the UID of an identity, which may contain keys of a later version.
fn kept_uid(identity: &str) -> Option<u32> {
    let table: toml::Table = identity.parse().ok()?;
    u32::try_from(table.get("uid")?.as_integer()?).ok()
}

/// Returns the VM names of directories.
fn names(dirs: Vec<PathBuf>) -> impl Iterator<Item = VmName> {
    dirs.into_iter().filter_map(|dir| named(&dir))
}

fn named(dir: &Path) -> Option<VmName> {
    dir.file_name()?.to_str()?.parse().ok()
}

/// The text of another VM's identity. It may be of a newer version or damaged, so values are
/// searched in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherIdentity(String);

impl OtherIdentity {
    /// Returns every MAC address in the text.
    pub fn macs(&self) -> impl Iterator<Item = MacAddr> {
        let words = self.0.split(|c: char| !(c.is_ascii_hexdigit() || c == ':'));
        words.filter_map(|word| word.parse().ok())
    }

    /// Returns true if the text contains this UUID.
    pub fn has_uuid(&self, uuid: &str) -> bool {
        !uuid.is_empty() && self.0.contains(uuid)
    }
}

/// Returns the identities of the other VMs, including VMs being created. A user without read
/// permission cannot change identities either, so unreadable ones are skipped.
///
/// # Errors
/// The state directory of all VMs, or an identity, cannot be read.
pub fn others(layout: &Layout, own: &VmName) -> Result<Vec<(VmName, OtherIdentity)>, file::Error> {
    let mut others = Vec::new();
    let of_other = |dir: PathBuf| {
        let name = named(&dir).or_else(|| Layout::drafted(&dir))?;
        let paths = VmPaths { state: dir, ..layout.vm(&name) };
        (name != *own).then(|| (name, paths.identity()))
    };
    let dirs = file::list(&layout.vm_states())?;
    let (names, files): (Vec<VmName>, Vec<PathBuf>) = dirs.into_iter().filter_map(of_other).unzip();
    let all = storage_reader::read_each(&files, |file| fs::read(file));
    for ((name, file), bytes) in names.into_iter().zip(&files).zip(all) {
        let no_answer = |error| Err(io::Error::new(io::ErrorKind::TimedOut, error));
        match bytes.unwrap_or_else(no_answer) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                others.push((name, OtherIdentity(text)));
            }
            Err(error) if is_absent(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(file::Error::on("read", file)(error)),
        }
    }
    Ok(others)
}

/// The file does not exist: there is none, or an interrupted rename has left a symbolic link to
/// itself.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::{
        store::identity::derived_mac,
        sys::progress::Cancel,
        value::{Explain, Label, chain},
    };

    fn layout(dir: &Path) -> Layout {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        Layout { config, state, runtime }
    }

    fn vm(name: &VmName, text: &str) -> Vm {
        crate::spec::read(name, Path::new("/x.toml"), text, &mut |path| fs::read(path)).unwrap()
    }

    /// Two names whose first NICs get the same address if considered alone.
    fn colliding_names() -> [VmName; 2] {
        let mut seen = BTreeMap::new();
        for number in 0.. {
            let name: VmName = format!("v{number}").parse().unwrap();
            let mac = derived_mac("host", &name, &Label::net(), &BTreeSet::new());
            if let Some(earlier) = seen.insert(mac, name.clone()) {
                return [earlier, name];
            }
        }
        unreachable!()
    }

    #[test]
    fn concurrent_starts_get_different_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let uuid = || "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
        let source = IdentitySource { layout: layout.clone(), host_id: "host".into(), uuid };
        let names = colliding_names();
        let vms = names.clone().map(|name| vm(&name, "[image]\npath = \"/x\"\n"));
        for _ in 0..20 {
            for name in &names {
                let _ = fs::remove_dir_all(layout.vm(name).state);
                fs::create_dir_all(layout.vm(name).state).unwrap();
            }
            let together = Barrier::new(2);
            let made = std::thread::scope(|scope| {
                let (together, source) = (&together, &source);
                let starts = vms.each_ref().map(|vm| {
                    scope.spawn(move || {
                        let cancel = Cancel::default();
                        let waiter = Waiter { cancel: &cancel, say: &|_| {} };
                        together.wait();
                        ensure(source, vm, "pc-q35-10.0", false, waiter).unwrap()
                    })
                });
                starts.map(|start| start.join().unwrap())
            });
            let [one, other] = made.each_ref().map(|identity| identity.macs.values().next());
            assert!(one.is_some() && one != other, "{one:?} twice");
            let kept = names.each_ref().map(|name| read(&layout.vm(name)).unwrap().unwrap());
            assert_eq!(kept, made);
        }
    }

    #[test]
    fn address_of_a_draft_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let draft = layout.draft(&"copy".parse().unwrap());
        fs::create_dir_all(&draft.state).unwrap();
        let identity = "uuid = \"1\"\ninstanceId = \"i\"\nmachine = \"m\"\n";
        fs::write(draft.identity(), identity).unwrap();
        let seen = others(&layout, &"web".parse().unwrap()).unwrap();
        assert_eq!(seen[0].0.as_str(), "copy");
        assert!(others(&layout, &"copy".parse().unwrap()).unwrap().is_empty());
    }

    #[test]
    fn addresses_of_damaged_identities_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let [db, web]: [VmName; 2] = ["db", "web"].map(|name| name.parse().unwrap());
        fs::create_dir_all(layout.vm(&db).state).unwrap();
        let mac = MacAddr::local([1, 2, 3]);
        let taken = || {
            let others = others(&layout, &web)?;
            Ok::<_, file::Error>(others.iter().any(|(_, other)| other.macs().any(|m| m == mac)))
        };
        for text in [
            format!("uuid = \"1\"\ninstanceId = \"i\"\nmachine = \"m\"\n[macs]\nnet = \"{mac}\"\n"),
            format!("uuid = \"1\"\nfuture = 1\n[macs]\nnet = \"{mac}\"\n"),
            format!("[nics.net]\naddress = \"{mac}\"\n"),
            format!("uuid = \"1\"\n[macs]\nnet = \"{mac}\"\nlan = \"52:5"),
        ] {
            fs::write(layout.vm(&db).identity(), &text).unwrap();
            assert!(taken().unwrap(), "{text}");
        }
        // An unreadable identity stops the choice.
        fs::remove_file(layout.vm(&db).identity()).unwrap();
        assert!(!taken().unwrap());
        fs::create_dir(layout.vm(&db).identity()).unwrap();
        assert!(taken().is_err());
        fs::remove_dir(layout.vm(&db).identity()).unwrap();
        std::os::unix::fs::symlink("www", layout.vm_states().join("www")).unwrap();
        fs::write(layout.vm_states().join("file"), "").unwrap();
        assert!(!taken().unwrap());
    }

    #[test]
    fn concurrent_changes_are_not_lost() {
        const THREADS: usize = 4;
        const CHANGES: usize = 15;
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let paths = layout.vm(&"web".parse().unwrap());
        fs::create_dir_all(&paths.state).unwrap();
        let identity = Identity {
            uuid: "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
            instance_id: "iid-web-0".into(),
            machine: "pc-q35-10.0".into(),
            macs: Default::default(),
            hostname: None,
            uid: None,
        };
        write(&paths, &identity).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (layout, paths) = (&layout, &paths);
                scope.spawn(move || {
                    let cancel = Cancel::default();
                    let waiter = Waiter { cancel: &cancel, say: &|_| {} };
                    for nr in 0..CHANGES {
                        let nic: Label = format!("n{thread}-{nr}").parse().unwrap();
                        let done = change(layout, paths, waiter, |identity| {
                            // Like a reseed and a NIC hotplug.
                            identity.instance_id = format!("iid-web-{thread}-{nr}");
                            identity.macs.insert(nic, MacAddr::local([thread as u8, nr as u8, 0]));
                        });
                        done.unwrap().unwrap();
                    }
                });
            }
        });
        assert_eq!(read(&paths).unwrap().unwrap().macs.len(), THREADS * CHANGES);
        let nobody = layout.vm(&"nobody".parse().unwrap());
        let waiter = Waiter { cancel: &Cancel::default(), say: &|_| {} };
        assert!(change(&layout, &nobody, waiter, |_| ()).unwrap().is_none());
    }

    #[test]
    fn damaged_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.path().join(place));
        let paths = Layout { config, state, runtime }.vm(&"web".parse().unwrap());
        fs::create_dir_all(&paths.state).unwrap();
        let identity = Identity {
            uuid: "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".into(),
            instance_id: "iid-web-7e0f3c52".into(),
            machine: "pc-q35-10.0".into(),
            macs: Default::default(),
            hostname: None,
            uid: None,
        };
        write(&paths, &identity).unwrap();
        assert_eq!(read(&paths).unwrap(), Some(identity.clone()));
        write(&paths, &Identity { machine: "pc-q35-10.0,x".into(), ..identity }).unwrap();
        let error = read(&paths).unwrap_err();
        let path = paths.identity();
        let expected = format!("cannot read `{}`: invalid value of `machine`", path.display());
        assert_eq!(chain(&error).trim(), expected);
        assert!(error.hint().unwrap().contains("backup"));
    }

    #[test]
    fn uid_is_kept_during_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.path().join(place));
        let layout = Layout { config, state, runtime };
        let [web, www, db]: [VmName; 3] = ["web", "www", "db"].map(|name| name.parse().unwrap());
        let mut identity: Identity =
            toml::from_str("uuid = \"1\"\ninstanceId = \"i\"\nmachine = \"m\"\n").unwrap();
        for vm in [&web, &db] {
            fs::create_dir_all(layout.vm(vm).state).unwrap();
        }
        let cancel = Cancel::default();
        let waiter = Waiter { cancel: &cancel, say: &|_| {} };
        let lock = IdentityLock::acquire(&layout, waiter).unwrap();
        let choose = |identity: &mut Identity, vm| choose_user(identity, &layout, vm, &lock);
        assert!(choose(&mut identity, &web).unwrap());
        let range = UidRange::default();
        assert_eq!(identity.uid, Some(range.first()));
        // The symbolic link to the state during a rename.
        std::os::unix::fs::symlink("web", layout.vm(&www).state).unwrap();
        for name in [&web, &www] {
            assert!(!choose(&mut identity, name).unwrap());
        }
        // The UID of another VM, whose identity has unknown keys.
        let uid = range.first() + 1;
        fs::write(layout.vm(&db).identity(), format!("future = 1\nuid = {uid}\n")).unwrap();
        identity.uid = Some(uid);
        assert!(choose(&mut identity, &www).unwrap());
        assert_eq!(identity.uid, Some(range.first()));
        // Invalid settings have no range and change no UID.
        identity.uid = Some(5000);
        fs::create_dir_all(&layout.config).unwrap();
        fs::write(layout.host_settings(), "uidRange = \"0-1\"\n").unwrap();
        assert!(!choose(&mut identity, &www).unwrap());
        fs::write(layout.host_settings(), format!("uidRange = \"{uid}-{uid}\"\n")).unwrap();
        let error = choose(&mut identity, &www).unwrap_err();
        assert!(matches!(error, Error::NoUser(_)), "{error}");
    }
}
