//! Renames a stopped VM.
//!
//! The VM file and the state directory have the name, and no file system renames both atomically.
//! So a symbolic link with the new name to the directory is created first; then the VM file is
//! renamed, from where on the VM has the new name; then the directory replaces the link. At each
//! moment exactly one VM has the disks, and a repeated call continues an interrupted one.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{Error, host_files};
use crate::{
    spec::{self, Vm},
    store::{
        identity_lock::Waiter,
        identity_store,
        layout::{Layout, VmPaths},
        vm_state,
    },
    sys::{file, progress::Cancel, rename as names},
    value::VmName,
};

/// The result of a rename.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renamed {
    /// The host name that the guest keeps, which is not in the VM file.
    pub hostname: Option<String>,
    /// The VM files whose `after` has the old name.
    pub after: Vec<PathBuf>,
}

/// What exists at the path of a state directory.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Free,
    Directory,
    /// A symbolic link to the directory of the old name: a step of an interrupted rename.
    Step,
    /// The operator's own symbolic link to the disks.
    Link,
}

/// Renames the VM `old`, or continues an interrupted rename.
///
/// # Errors
/// The VM is running, the new name exists, its VM file is or would be invalid, or a file cannot be
/// renamed.
pub fn rename(layout: &Layout, old: &VmName, new: &VmName) -> Result<Renamed, Error> {
    if old == new {
        return Err(Error::Same(old.clone()));
    }
    let files = [old, new].map(|name| layout.vm_file(name));
    let [from, to] = [old, new].map(|name| layout.vm(name));
    let known = file::exists(&files[0])? || file::exists(&from.state)?;
    if !known {
        return Err(Error::NoVm(old.clone()));
    }
    let in_use = |source| Error::InUse { name: new.clone(), source };
    let _locks = vm_state::both_down(&from, &to).map_err(|(is_new, source)| match is_new {
        true => in_use(source),
        false => source.into(),
    })?;
    let places = (place(&from.state, old)?, place(&to.state, old)?);
    let begins = match (file::exists(&files[0])?, file::exists(&files[1])?) {
        (true, true) => return Err(Error::Exists(new.clone())),
        (false, false) => return Err(Error::NoFile(files[0].clone())),
        (begins, _) => begins,
    };
    let finishes = !begins && places.0 == Place::Step;
    if !finishes && matches!(places.1, Place::Directory | Place::Link) {
        return Err(Error::Kept { name: new.clone(), path: to.state });
    }
    let vm = match begins {
        true => checked(&files, new)?,
        false => spec::load(&files[1]).map_err(Error::Invalid)?,
    };
    let after = vm_files_after(layout, old, begins.then_some(&from.state))?;
    let hostname = keep_hostname(layout, if finishes { &to } else { &from }, &vm, old)?;
    if begins {
        let linked = places == (Place::Directory, Place::Free);
        if linked {
            let target = Path::new(old.as_str());
            symlink(target, &to.state).map_err(file::Error::on("create the link", &to.state))?;
            file::sync_dir(&to.state)?;
        }
        names::no_replace(&files[0], &files[1]).map_err(|error| {
            if linked {
                let _ = fs::remove_file(&to.state);
            }
            file::Error::on("rename to", &files[1])(error)
        })?;
        file::sync_dir(&files[1])?;
    }
    rename_state(old, &from.state, &to.state)?;
    Ok(Renamed { hostname, after })
}

/// Returns the VM files whose `after` names the VM. None may refer to a file in the directory that
/// is renamed.
fn vm_files_after(
    layout: &Layout,
    old: &VmName,
    moves: Option<&PathBuf>,
) -> Result<Vec<PathBuf>, Error> {
    let mut after = Vec::new();
    for (file, vm) in spec::load_all(&layout.vm_files()) {
        // The references of an invalid file are unknown.
        let Ok(vm) = vm else { continue };
        let needed = |path: &&Path| moves.is_some_and(|dir| path.starts_with(dir));
        if let Some(path) = host_files(&vm).find(needed) {
            return Err(Error::Needed { file, path: path.to_owned() });
        }
        if vm.after.contains(old) {
            after.push(file);
        }
    }
    Ok(after)
}

/// Records the host name that the guest has by default in the identity.
fn keep_hostname(
    layout: &Layout,
    state: &VmPaths,
    vm: &Vm,
    old: &VmName,
) -> Result<Option<String>, Error> {
    if vm.cloud_init.as_ref().is_none_or(|seed| seed.hostname.is_some()) {
        return Ok(None);
    }
    let waiter = Waiter { cancel: &Cancel::default(), say: &|text| tracing::info!("{text}") };
    let kept = identity_store::change(layout, state, waiter, |identity| {
        identity.keep_hostname(old);
        identity.hostname.clone()
    });
    Ok(kept?.flatten())
}

/// Renames the state directory.
fn rename_state(old: &VmName, from: &Path, to: &Path) -> Result<(), Error> {
    let done = match (place(from, old)?, place(to, old)?) {
        (Place::Free, _) => return Ok(()),
        // After an exchange only the link is left.
        (Place::Step, _) => fs::remove_file(from),
        (Place::Directory, Place::Step) => names::replace_link(from, to),
        (_, Place::Free) => names::no_replace(from, to),
        // The new link replaces the old one.
        (Place::Link, Place::Step) => fs::rename(from, to),
        (_, Place::Directory | Place::Link) => Err(io::ErrorKind::AlreadyExists.into()),
    };
    done.map_err(file::Error::on("rename to", to))?;
    Ok(file::sync_dir(to)?)
}

fn place(path: &Path, old: &VmName) -> Result<Place, Error> {
    if !file::exists(path)? {
        return Ok(Place::Free);
    }
    Ok(match fs::read_link(path) {
        Ok(target) if target == Path::new(old.as_str()) => Place::Step,
        Ok(_) => Place::Link,
        // EINVAL: not a symbolic link.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Place::Directory,
        Err(error) => return Err(file::Error::on("read", path)(error).into()),
    })
}

/// Validates the VM file under both names; it must be a regular file.
fn checked(files: &[PathBuf; 2], new: &VmName) -> Result<Vm, Error> {
    let [from, to] = files;
    if let Ok(target) = fs::read_link(from) {
        return Err(Error::LinkedFile { file: from.clone(), target });
    }
    let (_, text) = spec::load_with_text(from).map_err(Error::Invalid)?;
    spec::read(new, to, &text, &mut |path| fs::read(path))
        .map_err(|problems| Error::WouldBeInvalid(spec::Invalid(problems)))
}
