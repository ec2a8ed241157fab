//! Any bytes as the archive of an exported VM, and archives of any files whatever: either a whole VM is imported, as valid as one that was
//! made here, or nothing is left; and no file is written but those of that VM.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use qvm::{
    cli::{exit::Failure, table::Screen},
    image::qcow2,
    spec,
    store::{identity::Identity, identity_store::IdentitySource, layout::Layout},
    sys::progress::{Cancel, Quiet},
    transfer::{archive_format, import::import, import_request::Import},
    value::Explain,
};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::Cut;

/// Where imports go, and what lies beside that.
struct Place {
    dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place { dir: tempfile::tempdir().expect("a directory") });
}

/// The first byte: bit 0 is for bytes as they are, and else files; bit 1 for a copy, bit 2 for a name of its own.
pub fn check(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    let tar = if choice & 1 == 1 { rest.to_vec() } else { built(rest) };
    PLACE.with_borrow(|place| one(place.dir.path(), &tar, choice));
}

/// An archive of files with a manifest that is true of them: each has a kind, a path, how much of its size is a lie, and its bytes.
fn built(bytes: &[u8]) -> Vec<u8> {
    let (mut cut, mut tar, mut files) = (Cut(bytes), Vec::new(), Vec::new());
    let mut vm = String::from("web");
    while !cut.is_empty() {
        let (kind, path, content) = (cut.byte(), cut.short(), cut.long());
        let path = String::from_utf8_lossy(path).into_owned();
        if let Some((dir, name)) = path.split_once('/') {
            vm = dir.to_owned();
            let sha256: String =
                Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            files.push(archive_format::File {
                name: name.to_owned(),
                size: content.len() as u64,
                sha256,
            });
        }
        append(&mut tar, kind, &path, content);
    }
    if let Ok(name) = vm.parse() {
        let (qvm, exported_at) = ("0.1.0".to_owned(), "2026-01-01T00:00:00Z".to_owned());
        let manifest = archive_format::Manifest {
            version: archive_format::VERSION,
            name,
            qvm,
            exported_at,
            files,
        };
        let json = serde_json::to_vec(&manifest).expect("JSON");
        append(&mut tar, 0, &format!("{vm}/manifest.json"), &json);
    }
    tar.extend([0; 1024]);
    tar
}

fn append(tar: &mut Vec<u8>, kind: u8, path: &str, content: &[u8]) {
    const KINDS: [EntryType; 8] = [
        EntryType::Regular,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::GNULongName,
        EntryType::GNUSparse,
        EntryType::XHeader,
        EntryType::Char,
    ];
    let mut header = if kind & 0x40 == 0 { Header::new_ustar() } else { Header::new_gnu() };
    // Not by `set_path`, which refuses what a stranger would write.
    let name = &path.as_bytes()[..path.len().min(100)];
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    // Most are files.
    let kind = if kind & 0x80 == 0 { EntryType::Regular } else { KINDS[usize::from(kind % 8)] };
    header.set_entry_type(kind);
    let _ = header.set_link_name("/etc/passwd");
    header.set_size(content.len() as u64);
    header.set_mode(0o777);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn one(dir: &Path, mut tar: &[u8], choice: u8) {
    let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.join("qvm").join(place));
    let layout = Layout { config, state, runtime };
    let means = IdentitySource {
        layout: layout.clone(),
        host_id: "host".into(),
        uuid: || "7e0f3c52-4f2b-4b7e-9a34-0c5d0a1b2c3d".to_owned(),
    };
    let name = (choice & 4 == 4).then(|| "other".parse().expect("a name"));
    let (length, new_identity) = (None, choice & 2 == 2);
    let mut what =
        Import { from: &mut tar, called: "x".into(), length, name: name.clone(), new_identity };
    let imported = import(&mut what, &means, &mut Quiet, &Cancel::default());
    let left = everything_below(dir);
    match imported {
        Ok(imported) => {
            let vm = imported.vm.name;
            assert!(name.is_none_or(|name| name == vm));
            whole(&layout, &vm);
            let own = [
                layout.vm_file(&vm),
                layout.vm(&vm).state,
                layout.vm(&vm).runtime,
                layout.identities_lock(),
            ];
            for path in left {
                let beside = imported.user_data.as_ref() == Some(&path);
                let is_own = own.iter().any(|own| path.starts_with(own) || own.starts_with(&path));
                assert!(is_own || beside, "{} is nothing of the VM's", path.display());
            }
        }
        Err(error) => {
            super::is_tame(
                &Failure::from_error(&error).hint(error.hint()).shown(Screen::default()),
            );
            let files: Vec<_> = left.iter().filter(|path| path.is_file()).collect();
            // The lock stays, so that who waits for it and who comes later mean the same one.
            let kept =
                |path: &Path| path.starts_with(&layout.runtime) || path == layout.identities_lock();
            assert!(files.iter().all(|path| kept(path)), "{error} left {files:?}");
        }
    }
    fs::remove_dir_all(dir.join("qvm")).ok();
}

fn everything_below(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind");
        assert!(kind.is_file() || kind.is_dir(), "{} is a link, or worse", path.display());
        if kind.is_dir() {
            found.extend(everything_below(&path));
        }
        found.insert(path);
    }
    found
}

/// It would be taken by the next start.
fn whole(layout: &Layout, vm: &qvm::value::VmName) {
    let read = spec::load(&layout.vm_file(vm)).expect("a valid VM file");
    assert_eq!(read.name, *vm);
    let paths = layout.vm(vm);
    if let Ok(text) = fs::read_to_string(paths.identity()) {
        let identity: Identity = toml::from_str(&text).expect("an identity");
        assert_eq!(identity.flaw(), None);
    }
    for file in everything_below(&paths.state) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name of text");
        assert!(name == "seed.iso" || archive_format::Part::of(name).is_some(), "{name}");
        if name.ends_with(".qcow2") {
            let header = qcow2::Header::read(&fs::read(&file).expect("a disk")).expect("a disk");
            assert!(header.backing_span.is_none() && !header.external_data, "{header:?}");
        }
    }
}
