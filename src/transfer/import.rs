//! Imports a VM from an archive: reads it into a draft, compares it with its manifest, validates it
//! as untrusted input, and publishes it last.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::vm_text;
use super::{
    Error, archive,
    import_request::Import,
    unpack::{Unpacked, unpack},
};
use crate::{
    image::qcow2,
    spec::{self, Format, Source, Vm},
    store::{
        identity::Identity,
        identity_lock::{IdentityLock, Waiter},
        identity_store::{self, IdentitySource},
    },
    sys::{
        file,
        progress::{Cancel, Progress},
    },
    value::{Label, VmName, shown},
};

/// The result of an import.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The VM.
    pub vm: Vm,
    /// The name in the archive.
    pub was: VmName,
    /// The keys that were removed from the VM file.
    pub removed_keys: Vec<String>,
    /// Whether it has disks that a guest has run from.
    pub has_run: bool,
    /// The host name that the guest keeps, which is not in the VM file.
    pub hostname: Option<String>,
    /// The user-data file that was written.
    pub user_data: Option<PathBuf>,
    /// Files of this host that the VM file refers to.
    pub host_files: Vec<PathBuf>,
}

/// Imports a VM.
///
/// # Errors
/// The archive is invalid or incomplete, the VM exists, or a file cannot be written. Nothing is
/// left behind then.
pub fn import(
    import: &mut Import<'_>,
    identities: &IdentitySource,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Imported, Error> {
    let unpacked = unpack(import, &identities.layout, progress, cancel).and_then(|unpacked| {
        let (called, copy) = (&import.called, import.new_identity);
        Finish { identities, called, copy, unpacked, cancel }.finish()
    });
    unpacked.map_err(|error| if cancel.is_set() { Error::Canceled } else { error })
}

/// A complete archive whose digests match; its origin is not trusted.
struct Finish<'a, 'l> {
    identities: &'l IdentitySource,
    called: &'a str,
    /// Whether it gets a new identity.
    copy: bool,
    unpacked: Unpacked<'l>,
    cancel: &'a Cancel,
}

impl Finish<'_, '_> {
    fn wrong(&self, source: archive::Error) -> Error {
        Error::Archive { from: self.called.to_owned(), source }
    }

    fn finish(mut self) -> Result<Imported, Error> {
        let copied = match self.copy {
            true => vm_text::copied(&self.unpacked.vm_file, &self.unpacked.was),
            false => vm_text::Copied { text: self.unpacked.vm_file.clone(), keys: Vec::new() },
        };
        let (text, user_data) = self.place_user_data(copied.text)?;
        let vm = self.vm(&text, user_data.as_deref())?;
        self.check_disks(&vm)?;
        let hostname = self.identity(&vm)?;
        let Unpacked { mut draft, was, user_data: content, disks, .. } = self.unpacked;
        let put = match (&user_data, content) {
            (Some(path), Some(content)) => draft.put_user_data(path, &content)?,
            _ => false,
        };
        let made = |disk: &&spec::Disk| disks.iter().any(|(label, _)| *label == disk.name);
        let elsewhere = vm.disks.iter().filter(|disk| !made(disk)).filter_map(super::host_file);
        let host_files = elsewhere.chain(super::password_file(&vm)).map(Path::to_owned).collect();
        draft.publish(&text, 0o640)?;
        Ok(Imported {
            vm,
            was,
            removed_keys: copied.keys,
            has_run: !disks.is_empty(),
            hostname,
            user_data: user_data.filter(|_| put),
            host_files,
        })
    }

    /// Returns the path of the user-data and the VM file that refers to it. An archive must not
    /// choose a path on this host: only a plain name beside the VM file is used unchanged.
    fn place_user_data(&self, text: String) -> Result<(String, Option<PathBuf>), Error> {
        let Some(content) = &self.unpacked.user_data else { return Ok((text, None)) };
        let key = ["cloudInit", "userData"];
        let Some(written) = vm_text::value(&text, &key) else {
            return Err(self.wrong(archive::Error::NoUserData));
        };
        let dir = self.identities.layout.vm_files();
        let is_same = |path: &Path| -> io::Result<bool> {
            // Other file types, which may be endless, are not read.
            let meta = fs::metadata(path)?;
            let may_be = meta.is_file() && meta.len() == content.len() as u64;
            Ok(may_be && fs::read(path)? == *content)
        };
        let there = dir.join(&written);
        let is_plain = Path::new(&written).components().eq([Component::Normal(written.as_ref())])
            && !written.starts_with('.')
            && !written.ends_with(".toml");
        if is_same(&there).unwrap_or(false) || (is_plain && there.symlink_metadata().is_err()) {
            return Ok((text, Some(there)));
        }
        let own = format!("{}.user-data", self.unpacked.name);
        match vm_text::with_value(&text, &key, &own) {
            Some(text) => Ok((text, Some(dir.join(own)))),
            None => Err(self.wrong(archive::Error::NoUserData)),
        }
    }

    /// Parses the VM file under its name; its user-data is read from the archive only, not from
    /// this host.
    fn vm(&self, text: &str, user_data: Option<&Path>) -> Result<Vm, Error> {
        let Unpacked { name, user_data: content, .. } = &self.unpacked;
        let mut read = |path: &Path| match content {
            Some(content) if Some(path) == user_data => Ok(content.clone()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "it is not in the archive")),
        };
        let read = spec::read(name, &self.identities.layout.vm_file(name), text, &mut read);
        read.map_err(|problems| Error::WouldBeInvalid(spec::Invalid(problems)))
    }

    /// Checks that each disk is one that qvm would create for this VM file, without files of this
    /// host.
    fn check_disks(&self, vm: &Vm) -> Result<(), Error> {
        let unpacked = &self.unpacked;
        for (label, format) in &unpacked.disks {
            let made = |disk: &&spec::Disk| {
                let made =
                    matches!(disk.source, Source::Image(_) | Source::Blank | Source::Existing);
                made && disk.name == *label
            };
            let twice = unpacked.disks.iter().filter(|(other, _)| other == label).count() > 1;
            if !vm.disks.iter().any(|disk| made(&disk)) || twice {
                let name = format!("{label}.{}", format.name());
                return Err(self.wrong(archive::Error::NoDisk(name)));
            }
            let path = unpacked.draft.paths().disk(label, *format);
            if *format == Format::Qcow2 {
                let header = qcow2::Header::parse(&file::read_at(&path, 0, qcow2::HEAD)?);
                let wrong = |source| archive::Error::Disk { disk: label.clone(), source };
                let header = header.map_err(|source| self.wrong(wrong(source)))?;
                if header.backing_span.is_some() || header.external_data {
                    return Err(self.wrong(archive::Error::Outside(label.clone())));
                }
                if header.corrupt {
                    return Err(self.wrong(archive::Error::MarkedCorrupt(label.clone())));
                }
            }
        }
        let with_disk = |label: &Label| unpacked.disks.iter().any(|(disk, _)| disk == label);
        match unpacked.origins.iter().find(|label| !with_disk(label)) {
            Some(label) => Err(self.wrong(archive::Error::NoDisk(format!("{label}.origin.json")))),
            None => Ok(()),
        }
    }

    /// Writes the old identity or a new one; returns the host name that the guest keeps.
    fn identity(&mut self, vm: &Vm) -> Result<Option<String>, Error> {
        let Some(bytes) = &self.unpacked.identity else { return Ok(None) };
        let paths = self.unpacked.draft.paths();
        let read = toml::from_str::<Identity>(&String::from_utf8_lossy(bytes));
        let mut identity =
            read.map_err(|error| self.wrong(archive::Error::Identity(shown(error.message()))))?;
        if let Some(flaw) = identity.flaw() {
            return Err(self.wrong(archive::Error::IdentityFlaw(flaw)));
        }
        let waiter = Waiter { cancel: self.cancel, say: &|text| tracing::info!("{text}") };
        let lock = IdentityLock::acquire(&self.identities.layout, waiter);
        let _lock = lock.map_err(identity_store::Error::from)?;
        // The first start chooses a free UID of this host.
        identity.uid = None;
        if self.copy {
            let identity = identity_store::new(self.identities, vm, &identity.machine)?;
            identity_store::write(paths, &identity)?;
            return Ok(None);
        }
        for (other, its) in identity_store::others(&self.identities.layout, &self.unpacked.name)? {
            let mut macs = identity.macs.values().filter(|mac| its.macs().any(|m| m == **mac));
            let what = match macs.next() {
                _ if its.has_uuid(&identity.uuid) => "UUID".to_owned(),
                Some(mac) => format!("MAC address {mac}"),
                None => continue,
            };
            return Err(Error::Twin { other, what });
        }
        let by_default = vm.cloud_init.as_ref().is_some_and(|seed| seed.hostname.is_none());
        if by_default && self.unpacked.was != self.unpacked.name {
            identity.keep_hostname(&self.unpacked.was);
        }
        identity_store::write(paths, &identity)?;
        Ok(identity.hostname.filter(|_| by_default))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        store::layout::Layout,
        sys::progress::Quiet,
        transfer::export::{To, export},
    };

    fn layout(dir: &Path) -> Layout {
        let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join(place));
        Layout { config, state, runtime }
    }

    const VM_FILE: &str = "# The web.\n[disk.root]\nformat = \"raw\"\n";

    /// Returns an exported VM with a disk of 3000 bytes.
    fn archive() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (layout, web) = (layout(dir.path()), "web".parse().unwrap());
        fs::create_dir_all(layout.vm(&web).state).unwrap();
        fs::create_dir_all(layout.vm_files()).unwrap();
        fs::write(layout.vm_file(&web), VM_FILE).unwrap();
        fs::write(layout.vm(&web).state.join("root.raw"), [7; 3000]).unwrap();
        let (tar, now) = (dir.path().join("web.tar"), "2026-01-02T03:04:05Z".parse().unwrap());
        export(&layout, &web, &To::File(&tar), now, &mut Quiet, &Cancel::default()).unwrap();
        fs::read(tar).unwrap()
    }

    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(archive);

    fn take(tar: &[u8], dir: &Path) -> Result<Imported, Error> {
        let uuid = || "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned();
        let identities = IdentitySource { layout: layout(dir), host_id: "host".into(), uuid };
        let (name, new_identity, length) = (None, false, None);
        let from = &mut { tar };
        let mut what = Import { from, called: "x".into(), length, name, new_identity };
        import(&mut what, &identities, &mut Quiet, &Cancel::default())
    }

    /// Whether an archive was imported completely or not at all.
    fn whole_or_nothing(tar: &[u8]) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let imported = take(tar, dir.path());
        let layout = layout(dir.path());
        let list = |dir: &Path| file::list(dir).unwrap();
        let Ok(imported) = imported else {
            return list(&layout.vm_states()).is_empty() && list(&layout.vm_files()).is_empty();
        };
        let disk = fs::read(layout.vm(&imported.vm.name).state.join("root.raw")).unwrap();
        let vm_file = fs::read_to_string(layout.vm_file(&imported.vm.name)).unwrap();
        disk == [7; 3000] && vm_file == VM_FILE
    }

    #[test]
    fn valid_archive_is_imported() {
        let dir = tempfile::tempdir().unwrap();
        let imported = take(&archive(), dir.path()).unwrap();
        assert_eq!((imported.vm.name.as_str(), imported.has_run), ("web", true));
        assert!(whole_or_nothing(&archive()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn changed_archives_import_all_or_nothing(
            changes in proptest::collection::vec(
                (0_usize..7000, 0_usize..1200, any::<u8>(), 0..4),
                1..4
            )
        ) {
            let mut tar = GOOD.clone();
            for (at, length, byte, how) in changes {
                let at = at.min(tar.len());
                let end = (at + length).min(tar.len());
                match how {
                    0 => tar[at..end].iter_mut().take(1).for_each(|b| *b = byte),
                    1 => drop(tar.drain(at..end)),
                    2 => {
                        let again = tar[at..end].to_vec();
                        tar.splice(at..at, again);
                    }
                    _ => tar.truncate(at),
                }
            }
            prop_assert!(whole_or_nothing(&tar));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(whole_or_nothing(&bytes));
        }
    }
}
