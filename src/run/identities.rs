//! The identities that are kept: of one VM, and which addresses the others have.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use serde::de::Error as _;

use super::adopt::{self, Found};
use crate::{
    host::file,
    plan::{
        identity::{Identity, free_uid},
        layout::{Layout, VmPaths},
    },
    spec::{HostSettings, Vm},
    value::{MacAddr, UidRange, VmName},
};

/// What new identities are made of.
#[derive(Debug, Clone)]
pub struct Means {
    /// Where the other VMs are.
    pub layout: Layout,
    /// What tells this host from others (machine-id(5)).
    pub host_id: String,
    /// A new random UUID.
    pub uuid: fn() -> String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// identity.toml is not what it should be.
    #[error("cannot read `{path}`")]
    Content {
        /// The file.
        path: String,
        /// Where it is wrong.
        source: Box<toml::de::Error>,
    },
    /// Every user of the range is another VM's.
    #[error("no user is left for it: {} to {} are other VMs'", .0.first(), .0.last())]
    NoUser(UidRange),
    /// It cannot be written.
    #[error("cannot write the identity as TOML")]
    Encode(#[from] toml::ser::Error),
}

impl Error {
    /// The host is at fault, and not the VM.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self, Self::File(error) if error.is_the_hosts())
    }

    /// The way out.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Content { .. } => Some(
                "it holds the UUID, the MAC addresses and the machine type of this VM: put it back from a backup, \
                 or remove it for new ones"
                    .into(),
            ),
            Self::NoUser(_) => Some("make `uidRange` in the host's settings larger".into()),
            Self::Encode(_) => None,
        }
    }
}

/// The identity of a VM, if it has one.
///
/// # Errors
/// There is one, and it cannot be read.
pub fn read(paths: &VmPaths) -> Result<Option<Identity>, Error> {
    let path = paths.identity();
    let Some(bytes) = file::read(&path)? else { return Ok(None) };
    // What is wrong with it would come to QEMU's command line, and there mean another thing.
    let sound = |identity: Identity| match identity.flaw() {
        Some(key) => {
            Err(toml::de::Error::custom(format!("no identity of qvm's has such a `{key}`")))
        }
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
/// It cannot be written.
pub fn write(paths: &VmPaths, identity: &Identity) -> Result<(), Error> {
    Ok(file::write(&paths.identity(), toml::to_string(identity)?.as_bytes(), 0o600)?)
}

/// A new identity, on a machine of this type.
///
/// # Errors
/// The directory of all VMs' state cannot be read.
pub fn new(means: &Means, vm: &Vm, machine: &str) -> Result<Identity, file::Error> {
    let mut identity = Identity::new(vm, (means.uuid)(), &(means.uuid)(), machine);
    complete(&mut identity, means, vm)?;
    Ok(identity)
}

/// Gives the NICs that have none an address that no other VM has.
///
/// # Errors
/// The directory of all VMs' state cannot be read.
pub fn complete(identity: &mut Identity, means: &Means, vm: &Vm) -> Result<(), file::Error> {
    let others = others(&means.layout, &vm.name)?;
    let taken: BTreeSet<MacAddr> =
        others.into_iter().flat_map(|(_, other)| other.macs.into_values()).collect();
    identity.add_macs(vm, &means.host_id, &taken);
    Ok(())
}

/// Sees to it that a VM has a user of the host's range that no other VM has; whether it is given one, and that is written. One start
/// at a time: two VMs would find the same one free.
///
/// # Errors
/// None is free; or the identity cannot be written.
pub fn ensure_user(identity: &mut Identity, layout: &Layout, vm: &VmName) -> Result<bool, Error> {
    // That they are not valid was told before anything was begun. No VM loses its user by that.
    let settings = HostSettings::load(&layout.host_settings());
    let (range, is_known) =
        settings.map_or_else(|_| (UidRange::default(), false), |found| (found.uid_range, true));
    let path = layout.uids_lock();
    let on = |doing| file::Error::on(doing, &path);
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(on("open"))?;
    fs2::FileExt::lock_exclusive(&lock).map_err(on("lock"))?;
    let taken = users_of_others(layout, vm)?;
    let lost = match identity.uid {
        Some(uid) if is_known && !range.contains(uid) => {
            Some(format!("the user {uid} of its identity.toml is not in `uidRange` ({range})"))
        }
        Some(uid) => match taken.get(&uid) {
            Some(other) => Some(format!("its user {uid} is that of `{other}` too")),
            None => return Ok(false),
        },
        None => None,
    };
    let uid = free_uid(range, &taken.into_keys().collect()).ok_or(Error::NoUser(range))?;
    identity.uid = Some(uid);
    write(&layout.vm(vm), identity)?;
    if let Some(why) = lost {
        tracing::warn!("{why}: QEMU is user {uid} from now on");
    }
    Ok(true)
}

/// The users that other VMs have, and one VM of each: by their identities, by who owns their files, since an identity may not be
/// readable, and by what runs.
///
/// # Errors
/// The directory of all VMs' state, or of what runs, cannot be read.
fn users_of_others(layout: &Layout, own: &VmName) -> Result<BTreeMap<u32, VmName>, file::Error> {
    let mut users = BTreeMap::new();
    // While a VM is renamed, a link has one of its names.
    let place = |name: &VmName| fs::canonicalize(layout.vm(name).state).ok();
    let own_place = place(own);
    for name in names(file::list(&layout.vm_states())?) {
        if name == *own || own_place.is_some() && place(&name) == own_place {
            continue;
        }
        let paths = layout.vm(&name);
        let kept = fs::read_to_string(paths.identity()).ok().and_then(|text| kept_uid(&text));
        let files = file::list(&paths.state).unwrap_or_default();
        let owners = files.iter().filter_map(|path| Some(fs::metadata(path).ok()?.uid()));
        for uid in owners.chain(kept) {
            users.entry(uid).or_insert_with(|| name.clone());
        }
    }
    for name in names(file::list(&layout.runtime)?).filter(|name| name != own) {
        if let Found::Alive(_, record) = adopt::find(&layout.vm(&name))
            && let Some(uid) = record.isolation.and_then(|isolation| isolation.uid)
        {
            users.entry(uid).or_insert(name);
        }
    }
    Ok(users)
}

/// The user that an identity tells, also one with keys of a later version.
fn kept_uid(identity: &str) -> Option<u32> {
    let table: toml::Table = identity.parse().ok()?;
    u32::try_from(table.get("uid")?.as_integer()?).ok()
}

/// The VMs that directories are named after.
fn names(dirs: Vec<PathBuf>) -> impl Iterator<Item = VmName> {
    dirs.into_iter().filter_map(|dir| dir.file_name()?.to_str()?.parse().ok())
}

/// The identities of the other VMs, as far as they can be read: what is wrong with one is told when it is started.
///
/// # Errors
/// The directory of all VMs' state cannot be read.
pub fn others(layout: &Layout, own: &VmName) -> Result<Vec<(VmName, Identity)>, file::Error> {
    let mut others = Vec::new();
    for name in names(file::list(&layout.vm_states())?) {
        let text = fs::read_to_string(layout.vm(&name).identity());
        if let (Some(other), false) =
            (text.ok().and_then(|t| toml::from_str(&t).ok()), name == *own)
        {
            others.push((name, other));
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::chain;

    #[test]
    fn what_a_bad_disk_made_of_an_identity_does_not_come_to_the_command_line() {
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
        let said =
            format!("cannot read `{}`: no identity of qvm's has such a `machine`", path.display());
        assert_eq!(chain(&error).trim(), said);
        assert!(error.hint().unwrap().contains("backup"));
    }

    #[test]
    fn a_vm_keeps_the_user_that_no_other_has_also_half_way_through_its_renaming() {
        let dir = tempfile::tempdir().unwrap();
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.path().join(place));
        let layout = Layout { config, state, runtime };
        let [web, www, db]: [VmName; 3] = ["web", "www", "db"].map(|name| name.parse().unwrap());
        let mut identity: Identity =
            toml::from_str("uuid = \"1\"\ninstanceId = \"i\"\nmachine = \"m\"\n").unwrap();
        for vm in [&web, &db] {
            fs::create_dir_all(layout.vm(vm).state).unwrap();
        }
        assert!(ensure_user(&mut identity, &layout, &web).unwrap());
        let range = UidRange::default();
        assert_eq!(identity.uid, Some(range.first()));
        // The link that leads to the state as long as that has the old name.
        std::os::unix::fs::symlink("web", layout.vm(&www).state).unwrap();
        for name in [&web, &www] {
            assert!(!ensure_user(&mut identity, &layout, name).unwrap());
        }
        // Another's, whatever else its identity tells.
        let uid = range.first() + 1;
        fs::write(layout.vm(&db).identity(), format!("future = 1\nuid = {uid}\n")).unwrap();
        identity.uid = Some(uid);
        assert!(ensure_user(&mut identity, &layout, &www).unwrap());
        assert_eq!(identity.uid, Some(range.first()));
        // Of settings that are not valid no range is known, and nobody loses anything by it.
        identity.uid = Some(5000);
        fs::create_dir_all(&layout.config).unwrap();
        fs::write(layout.host_settings(), "uidRange = \"0-1\"\n").unwrap();
        assert!(!ensure_user(&mut identity, &layout, &www).unwrap());
        fs::write(layout.host_settings(), format!("uidRange = \"{uid}-{uid}\"\n")).unwrap();
        let error = ensure_user(&mut identity, &layout, &www).unwrap_err();
        assert!(matches!(error, Error::NoUser(_)), "{error}");
    }
}
