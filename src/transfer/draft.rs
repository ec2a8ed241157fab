//! A VM that is being created, invisible until it is complete.
//!
//! It is created in `vms/.qvm-NAME`, which is renamed to `vms/NAME`. Then its VM file is put in
//! place: from then on the VM exists. What a crash leaves before has no VM file and is marked as
//! unfinished; the next attempt removes it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    store::{
        layout::{Layout, VmPaths},
        vm_state,
    },
    sys::{file, rename},
    value::VmName,
};

/// A VM that is being created, with a lock on its name. An unfinished draft is removed on drop.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    layout: &'a Layout,
    name: VmName,
    /// The paths that its files are created at.
    paths: VmPaths,
    /// The current directory of its files.
    at: PathBuf,
    /// A user-data file that was written beside the VM file.
    user_data: Option<PathBuf>,
    done: bool,
    _locks: vm_state::Locks,
}

impl<'a> Draft<'a> {
    /// Begins the VM `name`, which must not exist.
    ///
    /// # Errors
    /// The VM or data of it exists, or a directory cannot be created.
    pub(crate) fn create(layout: &'a Layout, name: &VmName) -> Result<Self, Error> {
        let paths = layout.draft(name);
        free(layout, name)?;
        let in_use = |source| Error::InUse { name: name.clone(), source };
        let locks = vm_state::down(&layout.vm(name)).map_err(in_use)?;
        // Checked again while the lock is held.
        free(layout, name)?;
        let there = layout.vm(name);
        if file::exists(&there.unfinished())? {
            file::remove_tree(&there.state)?;
        }
        file::remove_tree(&paths.state)?;
        vm_state::sweep(layout, Some(name));
        file::make_dir(&paths.state)?;
        let at = paths.state.clone();
        let (layout, name) = (layout, name.clone());
        let draft = Self { layout, name, paths, at, user_data: None, done: false, _locks: locks };
        file::create(&draft.paths.unfinished())?;
        Ok(draft)
    }

    /// Returns the paths for its files.
    pub(crate) fn paths(&self) -> &VmPaths {
        &self.paths
    }

    /// Returns the path of its VM file.
    pub(crate) fn vm_file(&self) -> PathBuf {
        self.layout.vm_file(&self.name)
    }

    /// Writes a user-data file beside the VM file, unless it exists; true if it was written.
    ///
    /// # Errors
    /// A file of that name with other content exists, or it cannot be written.
    pub(crate) fn put_user_data(&mut self, path: &Path, content: &[u8]) -> Result<bool, Error> {
        match file::read(path)? {
            Some(same) if same == content => Ok(false),
            Some(_) => Err(Error::UserData(path.to_owned())),
            None => {
                file::make_dir(&self.layout.vm_files())?;
                file::write_new(path, content, 0o640)?;
                self.user_data = Some(path.to_owned());
                Ok(true)
            }
        }
    }

    /// Publishes the VM.
    ///
    /// # Errors
    /// A VM file of that name has been written meanwhile, or a file cannot be written; nothing is
    /// left behind then.
    pub(crate) fn publish(mut self, vm_file: &str, mode: u32) -> Result<(), Error> {
        let there = self.layout.vm(&self.name);
        // The VM file refers to these paths.
        file::sync_dir(&self.paths.unfinished())?;
        match rename::no_replace(&self.at, &there.state) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Kept { name: self.name.clone(), path: there.state });
            }
            done => done.map_err(file::Error::on("rename to", &there.state))?,
        }
        self.at = there.state.clone();
        file::sync_dir(&there.state)?;
        file::make_dir(&self.layout.vm_files())?;
        file::write_new(&self.vm_file(), vm_file.as_bytes(), mode).map_err(|error| match error
            .kind()
        {
            io::ErrorKind::AlreadyExists => Error::Exists(self.name.clone()),
            _ => error.into(),
        })?;
        // The VM exists already; the next start removes the mark if this fails.
        self.done = true;
        let _ =
            file::remove(&there.unfinished()).and_then(|()| file::sync_dir(&there.unfinished()));
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.at);
            let _ = self.user_data.as_deref().map(fs::remove_file);
        }
    }
}

/// Refuses a name in use.
fn free(layout: &Layout, name: &VmName) -> Result<(), Error> {
    if file::exists(&layout.vm_file(name))? {
        return Err(Error::Exists(name.clone()));
    }
    let paths = layout.vm(name);
    if !file::exists(&paths.state)? {
        return Ok(());
    }
    // A directory alone: a symbolic link is not a leftover of an interrupted transfer.
    let is_dir = paths.state.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    match is_dir && file::exists(&paths.unfinished())? {
        true => Ok(()),
        false => Err(Error::Kept { name: name.clone(), path: paths.state }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> Layout {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        Layout { config, state, runtime }
    }

    #[test]
    fn publishes_all_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, web) = (layout(dir.path()), "web".parse().unwrap());
        let draft = Draft::create(&layout, &web).unwrap();
        fs::write(draft.paths().disk(&"root".parse().unwrap(), crate::spec::Format::Raw), "x")
            .unwrap();
        assert!(matches!(Draft::create(&layout, &web), Err(Error::InUse { .. })));
        drop(draft);
        assert!(file::list(&layout.vm_states()).unwrap().is_empty());

        let draft = Draft::create(&layout, &web).unwrap();
        draft.publish("vcpu = 2\n", 0o640).unwrap();
        assert_eq!(fs::read(layout.vm_file(&web)).unwrap(), b"vcpu = 2\n");
        assert!(fs::read_dir(layout.vm(&web).state).unwrap().next().is_none());
        assert!(matches!(Draft::create(&layout, &web), Err(Error::Exists(_))));
    }

    #[test]
    fn name_that_cannot_be_examined_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, web) = (layout(dir.path()), "web".parse().unwrap());
        fs::create_dir_all(&layout.state).unwrap();
        std::os::unix::fs::symlink("vms", layout.vm_states()).unwrap();
        assert!(matches!(free(&layout, &web), Err(Error::File(_))));
    }

    #[test]
    fn only_unfinished_drafts_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, web) = (layout(dir.path()), "web".parse().unwrap());
        let there = layout.vm(&web);
        for (begun, marked) in
            [(layout.draft(&web), true), (there.clone(), true), (there.clone(), false)]
        {
            fs::create_dir_all(&begun.state).unwrap();
            fs::write(begun.state.join("root.raw"), "x").unwrap();
            if marked {
                fs::write(begun.unfinished(), "").unwrap();
                let other = layout.draft(&"db".parse().unwrap()).state;
                fs::create_dir_all(&other).unwrap();
                drop(Draft::create(&layout, &web).unwrap());
                assert!(file::list(&layout.vm_states()).unwrap().is_empty());
            } else {
                assert!(matches!(Draft::create(&layout, &web), Err(Error::Kept { .. })));
                assert!(there.state.join("root.raw").exists());
            }
        }
        // Nothing behind a symbolic link is removed.
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&there.state, &elsewhere).unwrap();
        fs::write(elsewhere.join(".qvm-unfinished"), "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &there.state).unwrap();
        assert!(matches!(Draft::create(&layout, &web), Err(Error::Kept { .. })));
        assert!(elsewhere.join("root.raw").exists());
    }

    #[test]
    fn new_vm_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, web) = (layout(dir.path()), "web".parse().unwrap());
        let mut draft = Draft::create(&layout, &web).unwrap();
        let data = layout.vm_files().join("web.yaml");
        draft.put_user_data(&data, b"#cloud-config\n").unwrap();
        draft.put_user_data(&data, b"#cloud-config\n").unwrap();
        assert!(matches!(draft.put_user_data(&data, b"#!"), Err(Error::UserData(_))));
        fs::write(layout.vm_file(&web), "manual").unwrap();
        assert!(matches!(draft.publish("", 0o640), Err(Error::Exists(_))));
        assert_eq!(fs::read(layout.vm_file(&web)).unwrap(), b"manual");
        assert!(!layout.vm(&web).state.exists() && !data.exists());
        assert_eq!(file::list(&layout.vm_files()).unwrap().len(), 1);
    }
}
