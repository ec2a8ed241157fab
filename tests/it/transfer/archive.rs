//! Archives that are damaged, truncated or malicious: each refused with its exact message and
//! without leftovers.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest, refusal::Refusal};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// The files of an archive.
#[derive(Clone)]
struct Files(Vec<(Header, Vec<u8>)>);

impl Files {
    fn read(tar: &[u8]) -> Self {
        let mut archive = tar::Archive::new(tar);
        let files = archive.entries().unwrap().raw(true).map(|entry| {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            (entry.header().clone(), data)
        });
        Self(files.collect())
    }

    fn at(&self, name: &str) -> usize {
        self.0
            .iter()
            .position(|(header, _)| header.path_bytes().ends_with(name.as_bytes()))
            .unwrap()
    }

    /// With other content.
    fn with(mut self, name: &str, data: &[u8]) -> Self {
        let at = self.at(name);
        self.0[at].1 = data.to_vec();
        self
    }

    /// With another text in the place of a present one.
    fn changed(self, name: &str, old: &str, new: &str) -> Self {
        let text = String::from_utf8(self.0[self.at(name)].1.clone()).unwrap();
        assert!(text.contains(old), "{text}");
        self.with(name, text.replace(old, new).as_bytes())
    }

    fn without(mut self, name: &str) -> Self {
        let at = self.at(name);
        self.0.remove(at);
        self
    }

    /// With one more file before the manifest, whose path is not checked.
    fn more(mut self, path: &[u8], kind: EntryType, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_entry_type(kind);
        header.set_mode(0o600);
        if matches!(kind, EntryType::Link | EntryType::Symlink) {
            header.set_link_name("/etc/passwd").unwrap();
        }
        let last = self.0.len() - 1;
        self.0.insert(last, (header, data.to_vec()));
        self
    }

    /// With a correct manifest.
    fn sealed(mut self) -> Self {
        let last = self.at("manifest.json");
        let mut manifest: serde_json::Value = serde_json::from_slice(&self.0[last].1).unwrap();
        let files =
            self.0.iter().filter(|(header, _)| !header.path_bytes().ends_with(b"/manifest.json"));
        let files = files.map(|(header, data)| {
            let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let hex: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
            let name = path.split_once('/').map_or(path.as_str(), |(_, name)| name);
            serde_json::json!({ "name": name, "size": data.len(), "sha256": hex })
        });
        manifest["files"] = files.collect();
        self.0[last].1 = serde_json::to_vec(&manifest).unwrap();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        for (header, data) in &self.0 {
            let mut header = header.clone();
            header.set_size(data.len() as u64);
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            tar.extend_from_slice(data);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }
}

/// A lab for the import, and a good archive.
struct Inbox {
    lab: Lab,
    good: Files,
    tar: PathBuf,
}

fn below(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        below(&path, found);
    }
}

impl Inbox {
    fn new() -> Option<Self> {
        let image = guest("boot.qcow2")?;
        let lab = Lab::new();
        fs::write(lab.path().join("c/vms/dev.yaml"), "#cloud-config\n{}\n").unwrap();
        let more =
            "[disk.data]\nsize = \"1M\"\nformat = \"raw\"\n[cloudInit]\nuserData = \"dev.yaml\"\n";
        lab.vm("web", &image, more);
        lab.ok(&["start", "web"]);
        lab.ok(&["kill", "web"]);
        let tar = lab.path().join("web.tar");
        lab.ok(&["export", "web", tar.to_str().unwrap()]);
        let good = Files::read(&fs::read(&tar).unwrap());
        let inbox = Self { lab: Lab::new(), good, tar };
        // The directory of the first lab is removed with it.
        let tar = inbox.lab.path().join("web.tar");
        fs::write(&tar, inbox.good.bytes()).unwrap();
        Some(Self { tar, ..inbox })
    }

    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for place in ["c", "s/vms"] {
            below(&self.lab.path().join(place), &mut found);
        }
        found
    }

    /// Imports these bytes; returns the exit code, the error about the archive, and the hint.
    /// Checks that no file remains.
    #[track_caller]
    fn refused(&self, tar: &[u8]) -> Refusal {
        let before = self.tree();
        fs::write(&self.tar, tar).unwrap();
        let output = self.lab.qvm(&["import", self.tar.to_str().unwrap()]);
        let refusal = self.lab.refusal(&output);
        assert!(!output.status.success() && output.stdout.is_empty(), "it was taken");
        assert_eq!(self.tree(), before, "{}", refusal.text);
        refusal
    }

    #[track_caller]
    fn refuses(&self, files: &Files, section: &str) {
        self.refused(&files.bytes()).is(ErrorCode::ArchiveInvalid, 1).golden("archive", section);
    }

    /// Imports it, and removes it again.
    #[track_caller]
    fn takes(&self, files: &Files) -> String {
        fs::write(&self.tar, files.bytes()).unwrap();
        let said = self.lab.ok(&["import", self.tar.to_str().unwrap()]);
        self.lab.ok(&["rm", "web", "--disks", "--yes"]);
        said
    }
}

#[test]
fn archive_with_corrupt_disk_is_refused() {
    let Some(inbox) = Inbox::new() else { return };
    let good = inbox.good.clone();
    let mut disk = good.0[good.at("root.qcow2")].1.clone();
    // The bit "corrupt" of `incompatible_features`.
    disk[79] |= 2;
    let refusal = inbox.refused(&good.with("root.qcow2", &disk).sealed().bytes());
    refusal.is(ErrorCode::DiskCorrupt, 1).golden("archive", "corrupt-disk");
}

#[test]
fn truncated_archive_is_refused() {
    let Some(inbox) = Inbox::new() else { return };
    let whole = inbox.good.bytes();
    let (mut at, mut last, mut padded) = (0, "", false);
    let names: Vec<String> = inbox
        .good
        .0
        .iter()
        .map(|(header, _)| String::from_utf8_lossy(&header.path_bytes()).into_owned())
        .collect();
    for ((_, data), name) in inbox.good.0.iter().zip(&names) {
        let end = at + 512 + data.len();
        let refused = |length: usize, named: &str, section: &str| {
            let refusal = inbox.refused(&whole[..length]);
            let refusal = refusal.is(ErrorCode::ArchiveDamaged, 1).clone();
            // Each file of the archive gives the same text with its own name.
            assert!(refusal.text.contains(named), "{length}: {}", refusal.text);
            let mask = if named == "manifest.json" { named } else { "FILE" };
            refusal.masked(named, mask).golden("archive", section);
        };
        if !last.is_empty() {
            refused(at, "manifest.json", "ends-before-manifest");
            refused(at + 100, last, "damaged-after-file");
            if padded {
                refused(at - 1, last, "damaged-after-file");
            }
        }
        refused(at + 512, name, "ends-in-file");
        refused(end - 1, name, "ends-in-file");
        (at, last, padded) = (end.next_multiple_of(512), name, !end.is_multiple_of(512));
    }
    // The blocks of zeros at its end have no information.
    fs::write(&inbox.tar, &whole[..at]).unwrap();
    inbox.lab.ok(&["import", inbox.tar.to_str().unwrap()]);
}

#[test]
fn changed_byte_is_detected() {
    let Some(inbox) = Inbox::new() else { return };
    let whole = inbox.good.bytes();
    let mut at = 0;
    for (header, data) in &inbox.good.0 {
        let path = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let name = path.strip_prefix("web/").unwrap();
        for offset in [0, 124, 156, 257, 512, 512 + data.len() / 2, 512 + data.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at + offset] ^= 0x20;
            let refusal = inbox.refused(&damaged);
            if offset < 512 || name == "manifest.json" {
                assert_eq!(refusal.exit, 1, "{path} {offset}: {}", refusal.text);
                continue;
            }
            let refusal = refusal.is(ErrorCode::ArchiveDamaged, 1).clone();
            assert!(refusal.text.contains(name), "{offset}: {}", refusal.text);
            refusal.without_digests().masked(name, "FILE").golden("archive", "wrong-digest");
        }
        at += (512 + data.len()).next_multiple_of(512);
    }
}

#[test]
fn other_files_are_no_archives() {
    let Some(inbox) = Inbox::new() else { return };
    let other = Files(vec![inbox.good.0[inbox.good.at("root.qcow2")].clone()]);
    let disk = &inbox.good.0[inbox.good.at("root.qcow2")].1;
    let later = inbox.good.clone().changed("manifest.json", "\"version\": 1", "\"version\": 2");
    for bytes in
        [b"".to_vec(), b"x".to_vec(), vec![0; 4096], disk.clone(), vec![b'x'; 5000], other.bytes()]
    {
        inbox.refused(&bytes).is(ErrorCode::ArchiveForeign, 1).golden("archive", "foreign");
    }
    inbox.refused(&later.bytes()).is(ErrorCode::ArchiveTooNew, 1).golden("archive", "newer");
    fs::remove_file(&inbox.tar).unwrap();
    let missing = inbox.lab.refused(&["import", inbox.tar.to_str().unwrap()]);
    missing.is(ErrorCode::FileMissing, 1).golden("archive", "missing");
}

#[test]
fn paths_cannot_escape_the_directory() {
    let Some(inbox) = Inbox::new() else { return };
    let good = || inbox.good.clone();
    for path in [
        "../x.raw",
        "/etc/cron.d/x",
        "web/../../x.raw",
        "web/../x.raw",
        "./web/x.raw",
        "web//x.raw",
        "web/x/y.raw",
        "web/.raw",
        "web/.qvm-unfinished",
        "web/saved.state",
        "x.raw",
        "web/",
        "WEB/x.raw",
        "web/x.RAW",
        "web\\x.raw",
        "web/x.raw/",
    ] {
        let files = good().more(path.as_bytes(), EntryType::Regular, b"x").sealed();
        let shown = path.replace('\\', "\\\\");
        let refusal = inbox.refused(&files.bytes()).is(ErrorCode::ArchiveInvalid, 1).clone();
        assert!(refusal.text.contains(&format!("`{shown}`")), "{}", refusal.text);
        refusal.masked(&format!("`{shown}`"), "`PATH`").golden("archive", "path");
    }
    let files = good().more(b"web/a\nb\x1b[2J\xff", EntryType::Regular, b"x");
    inbox.refuses(&files, "path-with-control-characters");
    for (kind, what) in [
        (EntryType::Symlink, "symbolic-link"),
        (EntryType::Link, "hard-link"),
        (EntryType::Directory, "directory"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::XHeader, "tar-extension"),
        (EntryType::XGlobalHeader, "tar-extension"),
        (EntryType::GNULongName, "tar-extension"),
        (EntryType::GNUSparse, "tar-extension"),
    ] {
        let files = good().more(b"web/x.raw", kind, b"").sealed();
        inbox.refuses(&files, &format!("kind-{what}"));
        let mut files = good();
        files.0[0].0.set_entry_type(kind);
        inbox.refuses(&files, &format!("kind-of-vm-file-{what}"));
    }
}

#[test]
fn content_matches_manifest_and_vm_file() {
    let Some(inbox) = Inbox::new() else { return };
    let good = || inbox.good.clone();
    let regular = EntryType::Regular;
    inbox.refuses(&good().more(b"web/x.raw", regular, b"x"), "not-in-manifest");
    inbox.refuses(&good().without("data.raw"), "missing-disk");
    inbox.refuses(&good().more(b"web/root.qcow2", regular, b"x").sealed(), "file-twice");
    inbox.refuses(&good().more(b"db/x.raw", regular, b"x").sealed(), "file-of-another-vm");
    inbox.refuses(&good().changed("manifest.json", "\"web\"", "\"db\""), "manifest-of-another-vm");
    let mut after = good();
    let manifest = after.0.pop().unwrap();
    after.0.insert(3, manifest);
    inbox.refuses(&after, "missing-origin");
    let mut after = good();
    after.0.push(after.0[0].clone());
    inbox.refuses(&after, "file-after-manifest");
    let without = good().without("vm.toml").sealed();
    inbox.refused(&without.bytes()).is(ErrorCode::ArchiveForeign, 1).golden("archive", "foreign");
    let long = vec![b' '; (1 << 20) + 1];
    inbox.refuses(&good().with("vm.toml", &long).sealed(), "long-vm-file");
    let mut many = good();
    for nr in 0..64 {
        many = many.more(format!("web/d{nr}.raw").as_bytes(), regular, b"");
    }
    inbox.refuses(&many.sealed(), "many-files");
    inbox.refuses(&good().with("vm.toml", b"vcpu = \xff").sealed(), "vm-file-no-utf8");
    // Disks without a VM, or of another one.
    inbox.refuses(&good().more(b"web/x.raw", regular, b"x").sealed(), "foreign-disk");
    inbox.refuses(&good().more(b"web/root.raw", regular, b"x").sealed(), "disk-in-two-formats");
    inbox.refuses(&good().without("data.raw").sealed(), "origin-without-disk");
    let own = "size = \"1M\"";
    inbox.refuses(
        &good().changed("vm.toml", own, "path = \"/dev/shm/x\"").sealed(),
        "disk-at-another-path",
    );
    // An invalid VM file is reported like any other.
    let refusal = inbox.refused(&good().changed("vm.toml", "mem", "men").sealed().bytes());
    refusal.is(ErrorCode::InvalidFile, 78).golden("archive", "invalid-vm-file");
    inbox.takes(&good().sealed());
}

#[test]
fn archive_cannot_use_host_files() {
    let Some(inbox) = Inbox::new() else { return };
    let good = || inbox.good.clone();
    // A disk with a file of the host as its backing file.
    let secret = inbox.lab.path().join("secret.raw");
    fs::write(&secret, vec![7; 1 << 20]).unwrap();
    let overlay = inbox.lab.path().join("overlay.qcow2");
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).args([&secret, &overlay]);
    assert!(qemu_img.status().unwrap().success());
    let outside = "backing-file";
    let disk = fs::read(&overlay).unwrap();
    inbox.refuses(&good().with("root.qcow2", &disk).sealed(), outside);
    // Or with an external data file.
    let mut qemu_img = Command::new("qemu-img");
    let data = format!("data_file={},data_file_raw=on", inbox.lab.path().join("d.raw").display());
    qemu_img.args(["create", "-q", "-f", "qcow2", "-o", &data]).arg(&overlay).arg("1M");
    assert!(qemu_img.status().unwrap().success());
    let disk = fs::read(&overlay).unwrap();
    inbox.refuses(&good().with("root.qcow2", &disk).sealed(), outside);
    let script = good().with("root.qcow2", b"#!/bin/sh\n").sealed();
    let refusal = inbox.refused(&script.bytes());
    refusal.is(ErrorCode::ArchiveDamaged, 1).golden("archive", "disk-is-no-qcow2");
    // User-data that is a file of the host.
    let user_data = |path: &str| good().changed("vm.toml", "\"dev.yaml\"", &format!("{path:?}"));
    let stolen = user_data("/etc/hostname").without("user-data").sealed();
    let refusal = inbox.refused(&stolen.bytes());
    refusal.is(ErrorCode::InvalidFile, 78).golden("archive", "user-data-of-the-host");
    inbox.refuses(
        &good().changed("vm.toml", "userData = \"dev.yaml\"", "").sealed(),
        "unused-user-data",
    );
    // User-data over another user-data file, or as a VM file: it gets another name.
    let vms = inbox.lab.file("web").parent().unwrap().to_owned();
    fs::write(vms.join("taken.yaml"), "another's").unwrap();
    let absolute = inbox.lab.path().join("c/x.yaml");
    let own = vms.join("web.user-data");
    for path in ["../x.yaml", "evil.toml", ".hidden", "taken.yaml", absolute.to_str().unwrap()] {
        let said = inbox.takes(&user_data(path).sealed());
        let last = said.lines().next_back().unwrap_or_default();
        assert!(last.ends_with(own.to_str().unwrap()), "{path}: {said}");
        let text = fs::read_to_string(inbox.lab.file("web")).unwrap();
        assert!(text.contains("userData = \"web.user-data\"\n"), "{text}");
        fs::remove_file(inbox.lab.file("web")).unwrap();
        fs::remove_file(&own).unwrap();
    }
    assert_eq!(fs::read(vms.join("taken.yaml")).unwrap(), b"another's");
    assert!(!absolute.exists() && !vms.join("evil.toml").exists());
    fs::write(&own, "another's").unwrap();
    let refusal = inbox.refused(&user_data("/x.yaml").sealed().bytes());
    refusal.is(ErrorCode::UserDataExists, 1).golden("archive", "user-data-exists");
}

#[test]
fn identity_cannot_inject_options() {
    let Some(inbox) = Inbox::new() else { return };
    let good = || inbox.good.clone();
    let machine = good().changed("identity.toml", "machine = \"", "machine = \"none,accel=kvm,x=");
    inbox.refuses(&machine.sealed(), "identity-machine");
    let instance = good().changed("identity.toml", "instanceId = \"", "instanceId = \"a\\nb: ");
    inbox.refuses(&instance.sealed(), "identity-instance-id");
    inbox.refuses(&good().with("identity.toml", b"x = 1\n").sealed(), "identity-unknown-field");
    // Without an identity, the VM gets one when it starts.
    inbox.takes(&good().without("identity.toml").sealed());
}
