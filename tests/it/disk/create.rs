//! Disks: created once, grown, never shrunk, never overwritten, without leftovers after a failure.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use qvm::{
    disk::{self, Error, Ready},
    image::{
        Patience, Tools,
        cache::{self, Needs},
        qemu_img::QemuImg,
    },
    spec::{self, Bus, Checksum, Disk, Format, Image, Media, Origin, Source},
    store::layout::VmPaths,
    sys::progress::{At, Cancel, Progress, Quiet},
    value::{ErrorCode, Explain, Note, NoteCode, chain},
};

use crate::lab::refusal::golden_error;

struct Place {
    dir: tempfile::TempDir,
    vm: VmPaths,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmPaths { state: dir.path().join("vms/a"), runtime: dir.path().join("run/a") };
        Self { dir, vm }
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn ensure(&self, disk: &Disk) -> Result<Ready, Error> {
        self.ensure_with(disk, "qemu-img")
    }

    fn ensure_with(&self, disk: &Disk, qemu_img: &str) -> Result<Ready, Error> {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let qemu_img = QemuImg::new(qemu_img);
        let tools = Tools { qemu_img, patience: Patience::default(), now };
        let cancel = Cancel::default();
        disk::ensure(disk, &self.vm, &self.images(), &tools, &mut Quiet, &cancel)
    }

    /// An image of 8 MiB whose first MiB contains sevens.
    fn image(&self, format: Format) -> PathBuf {
        let path = self.dir.path().join(format!("image.{}", format.name()));
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", format.name()])
            .arg(&path)
            .arg("8M"));
        run(Command::new("qemu-io")
            .args(["-f", format.name(), "-c", "write -P 7 0 1M"])
            .arg(&path));
        path
    }

    /// Compares an error with a golden section.
    #[track_caller]
    fn golden(&self, section: &str, error: &Error) {
        golden_error("disk", section, error, self.dir.path());
    }

    fn state(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.vm.state) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn run(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn of(source: Source) -> Disk {
    Disk {
        name: "root".parse().unwrap(),
        source,
        size: None,
        format: Format::Qcow2,
        clone: spec::Clone::Copy,
        bus: Bus::Virtio,
        media: Media::Disk,
        read_only: false,
        cache: None,
        iothread: false,
        sector_size: None,
        limits: spec::DiskLimits::default(),
    }
}

fn from(path: &Path) -> Disk {
    let image = Image { origin: Origin::Path(path.to_owned()), checksum: Checksum::None };
    of(Source::Image(Box::new(image)))
}

fn info(path: &Path) -> serde_json::Value {
    let out = run(Command::new("qemu-img").args(["info", "--output=json"]).arg(path));
    serde_json::from_str(&out).unwrap()
}

fn starts_with_sevens(ready: &Ready) {
    let out = run(Command::new("qemu-io")
        .args(["-r", "-f", ready.format.name(), "-c", "read -P 7 0 1M", "-c", "read -P 0 1M 7M"])
        .arg(&ready.path));
    assert!(!out.contains("failed"), "{out}");
}

fn size(text: &str) -> Option<qvm::value::Size> {
    Some(text.parse().unwrap())
}

fn codes(notes: &[Note]) -> Vec<NoteCode> {
    notes.iter().map(|note| note.code).collect()
}

#[test]
fn disks_convert_between_all_formats() {
    for image in [Format::Qcow2, Format::Raw] {
        for format in [Format::Qcow2, Format::Raw] {
            let place = Place::new();
            let path = place.image(image);
            for (wanted, bytes) in [(None, 8 << 20), (size("20M"), 20 << 20)] {
                let disk = Disk { format, size: wanted, ..from(&path) };
                let ready = place.ensure(&disk).unwrap();
                assert_eq!(ready.path, place.vm.disk(&disk.name, format));
                assert_eq!((ready.format, ready.virtual_size), (format, Some(bytes)));
                assert_eq!(info(&ready.path)["virtual-size"], bytes);
                assert_eq!(info(&ready.path)["backing-filename"], serde_json::Value::Null);
                starts_with_sevens(&ready);
                let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
                assert_eq!((mode(&ready.path), mode(&place.vm.state)), (0o600, 0o750));
                let disk = format!("root.{}", format.name());
                assert_eq!(place.state(), ["root.origin.json".to_owned(), disk]);
                std::fs::remove_file(&ready.path).unwrap();
            }
        }
    }
}

#[test]
fn disk_is_grown_never_shrunk() {
    for format in [Format::Qcow2, Format::Raw] {
        let place = Place::new();
        let path = place.image(format);
        let disk = Disk { format, ..from(&path) };
        let ready = place.ensure(&disk).unwrap();
        run(Command::new("qemu-io")
            .args(["-f", format.name(), "-c", "write -P 9 2M 1M"])
            .arg(&ready.path));
        let grown = Disk { size: size("32M"), ..disk.clone() };
        assert_eq!(place.ensure(&grown).unwrap().virtual_size, Some(32 << 20));
        assert_eq!(info(&ready.path)["virtual-size"], 32 << 20);

        let smaller = Disk { size: size("16M"), ..disk.clone() };
        let kept = place.ensure(&smaller).unwrap();
        assert_eq!(kept.virtual_size, Some(32 << 20));
        assert_eq!(codes(&kept.notes), [NoteCode::DiskNotShrunk]);

        // Another image, and a missing one: neither is read.
        let changed = from(Path::new("/nowhere/other.qcow2"));
        let kept = place.ensure(&Disk { format, ..changed.clone() }).unwrap();
        let [note] = kept.notes.as_slice() else { panic!("{:?}", kept.notes) };
        assert!(note.is_of(NoteCode::DiskImageChanged, "disk.root"), "{note:?}");
        assert!(note.text.contains(&*path.to_string_lossy()), "{note:?}");
        assert_eq!(disk::notes(&Disk { format, ..changed }, &place.vm).unwrap(), kept.notes);
        assert!(place.ensure(&of(Source::Existing)).is_ok());
        let out = run(Command::new("qemu-io")
            .args(["-r", "-f", format.name(), "-c", "read -P 9 2M 1M"])
            .arg(&ready.path));
        assert!(!out.contains("failed"), "what the guest wrote is gone: {out}");
    }
}

#[test]
fn larger_image_is_not_truncated() {
    let place = Place::new();
    let path = place.image(Format::Qcow2);
    let ready = place.ensure(&Disk { size: size("1M"), ..from(&path) }).unwrap();
    assert_eq!(ready.virtual_size, Some(8 << 20));
    assert_eq!(codes(&ready.notes), [NoteCode::DiskNotShrunk]);
}

#[test]
fn existing_format_is_kept() {
    let place = Place::new();
    let path = place.image(Format::Raw);
    let raw = Disk { format: Format::Raw, ..from(&path) };
    place.ensure(&raw).unwrap();
    let ready = place.ensure(&from(&path)).unwrap();
    assert_eq!(ready.format, Format::Raw);
    assert_eq!(codes(&ready.notes), [NoteCode::DiskFormatKept]);
    assert_eq!(place.state(), ["root.origin.json", "root.raw"]);
}

#[test]
fn overlay_protects_its_base() {
    let place = Place::new();
    for image in [Format::Qcow2, Format::Raw] {
        let path = place.image(image);
        let disk = Disk {
            clone: spec::Clone::Overlay,
            size: size("20M"),
            name: image.name().parse().unwrap(),
            ..from(&path)
        };
        let ready = place.ensure(&disk).unwrap();
        starts_with_sevens(&ready);
        let info = info(&ready.path);
        assert_eq!(
            (&info["virtual-size"], &info["backing-filename-format"]),
            (&(20 << 20).into(), &image.name().into())
        );
        let base = PathBuf::from(info["backing-filename"].as_str().unwrap());
        assert!(base.is_absolute() && base.starts_with(place.images().canonicalize().unwrap()));
        assert_eq!(std::fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o440);
        // The operator's source file may be removed; the base may not.
        std::fs::remove_file(&path).unwrap();
        starts_with_sevens(&place.ensure(&disk).unwrap());
        let vm_states = place.vm.state.parent().unwrap().to_owned();
        let needs = Needs { vm_states: &vm_states, vms: &[] };
        assert!(cache::prune(&place.images(), &needs, false).unwrap().is_empty());
        let name = base.file_name().unwrap().to_str().unwrap();
        assert!(cache::remove(&place.images(), &needs, name).is_err());
        starts_with_sevens(&ready);
    }
}

#[test]
fn blank_disks() {
    for format in [Format::Qcow2, Format::Raw] {
        let place = Place::new();
        let mut disk = Disk { format, size: size("64M"), ..of(Source::Blank) };
        let ready = place.ensure(&disk).unwrap();
        assert_eq!(
            (ready.virtual_size, &info(&ready.path)["virtual-size"]),
            (Some(64 << 20), &(64 << 20).into())
        );
        let room = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&ready.path).unwrap());
        assert!(room * 512 < 1 << 20);
        disk.size = size("65M");
        assert_eq!(place.ensure(&disk).unwrap().virtual_size, Some(65 << 20));
    }
}

#[test]
fn insufficient_space_is_reported() {
    let place = Place::new();
    let disk = Disk { format: Format::Raw, size: size("4T"), ..of(Source::Blank) };
    let ready = place.ensure(&disk).unwrap();
    assert_eq!(codes(&ready.notes), [NoteCode::DiskOvercommitted]);
}

#[test]
fn prepared_disk_needs_no_process() {
    let place = Place::new();
    let disk = Disk { size: size("8M"), ..from(&place.image(Format::Qcow2)) };
    place.ensure(&disk).unwrap();
    let mut best = Duration::MAX;
    for _ in 0..50 {
        let since = Instant::now();
        // A missing qemu-img cannot have been started.
        place.ensure_with(&disk, "/nowhere/qemu-img").unwrap();
        best = best.min(since.elapsed());
    }
    assert!(best < Duration::from_millis(1), "{best:?}");
}

#[test]
fn failure_leaves_nothing() {
    let place = Place::new();
    let path = place.image(Format::Raw);
    // qemu-img writes half of a disk and fails.
    let fake = place.dir.path().join("qemu-img");
    std::fs::write(
        &fake,
        "#!/bin/sh\nfor last; do :; done\necho half > \"$last\"\n\
         echo 'qemu-img: No space left on device' >&2\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    let error = place.ensure_with(&from(&path), fake.to_str().unwrap()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NoSpace);
    place.golden("create-without-space", &error);
    assert_eq!(place.state(), [""; 0]);

    let missing = from(Path::new("/nowhere/x.qcow2"));
    let error = place.ensure(&missing).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FileMissing);
    place.golden("create-from-missing-image", &error);
    assert_eq!(place.state(), [""; 0]);

    let error = place.ensure(&of(Source::Existing)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskMissing);
    place.golden("create-without-image", &error);
}

#[test]
fn cancellation_leaves_nothing() {
    struct CallOff(Cancel);
    impl Progress for CallOff {
        fn at(&mut self, _: &At<'_>) {
            self.0.set();
        }
        fn note(&mut self, _: &str) {}
    }
    let place = Place::new();
    for (image, format) in [(Format::Raw, Format::Raw), (Format::Raw, Format::Qcow2)] {
        let disk = Disk { format, ..from(&place.image(image)) };
        let cancel = Cancel::default();
        let qemu_img = QemuImg::new("qemu-img");
        let tools =
            Tools { qemu_img, patience: Patience::default(), now: jiff::Timestamp::UNIX_EPOCH };
        let mut progress = CallOff(cancel.clone());
        let made = disk::ensure(&disk, &place.vm, &place.images(), &tools, &mut progress, &cancel);
        let Err(error) = made else {
            println!("skipped: this file system reflinks at once");
            continue;
        };
        assert!(error.is_canceled(), "{}", chain(&error));
        assert_eq!(place.state(), [""; 0]);
    }
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let place = Place::new();
    let disk = from(&place.image(Format::Qcow2));
    std::fs::create_dir_all(&place.vm.state).unwrap();
    for name in [".qvm-root.qcow2", ".qvm-root.origin.json", ".qvm-data.raw"] {
        std::fs::write(place.vm.state.join(name), "half").unwrap();
    }
    // A partial file of this disk does not block a start, even before its removal.
    starts_with_sevens(&place.ensure(&disk).unwrap());
    disk::remove_leftovers(&place.vm).unwrap();
    assert_eq!(place.state(), ["root.origin.json", "root.qcow2"]);
}

#[test]
fn damaged_disk_is_reported_and_kept() {
    let place = Place::new();
    std::fs::create_dir_all(&place.vm.state).unwrap();
    let path = place.vm.state.join("root.qcow2");
    std::fs::write(&path, "not qcow2").unwrap();
    let error = place.ensure(&from(&place.image(Format::Qcow2))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DiskDamaged);
    place.golden("damaged", &error);
    assert_eq!(std::fs::read(&path).unwrap(), b"not qcow2");
}

#[test]
fn operator_disk_is_unchanged() {
    let place = Place::new();
    let raw = place.image(Format::Raw);
    let qcow2 = place.image(Format::Qcow2);
    let missing = place.dir.path().join("missing");
    let file = |path: &Path, format| Disk { format, ..of(Source::File(path.to_owned())) };
    let ready = place.ensure(&Disk { size: size("1G"), ..file(&raw, Format::Raw) }).unwrap();
    assert_eq!((&ready.path, ready.virtual_size), (&raw, Some(8 << 20)), "it is never grown");
    assert_eq!(place.ensure(&file(&qcow2, Format::Qcow2)).unwrap().virtual_size, Some(8 << 20));
    let noted = place.ensure(&file(&qcow2, Format::Raw)).unwrap();
    assert_eq!(codes(&noted.notes), [NoteCode::DiskShownAsQcow2]);

    let device = |path: &Path| of(Source::Device(path.to_owned()));
    for (disk, code, section) in [
        (file(&raw, Format::Qcow2), ErrorCode::DiskWrongType, "own-raw-as-qcow2"),
        (file(&missing, Format::Raw), ErrorCode::DiskMissing, "own-missing"),
        (file(place.dir.path(), Format::Raw), ErrorCode::DiskWrongType, "own-directory"),
        (device(&raw), ErrorCode::DiskWrongType, "own-file-as-device"),
        (device(Path::new("/dev/nowhere")), ErrorCode::DiskMissing, "own-missing-device"),
        (device(Path::new("/dev/null")), ErrorCode::DiskWrongType, "own-character-device"),
        (file(Path::new("/dev/null"), Format::Raw), ErrorCode::DiskWrongType, "own-device-as-file"),
    ] {
        let error = place.ensure(&disk).unwrap_err();
        assert_eq!(error.code(), code, "{section}");
        place.golden(section, &error);
    }
    assert!(!missing.exists());
    // A CD is never opened for writing.
    let iso = Disk { media: Media::Cdrom, ..file(&raw, Format::Raw) };
    std::fs::set_permissions(&raw, PermissionsExt::from_mode(0o444)).unwrap();
    place.ensure(&iso).unwrap();
    assert_eq!(place.state(), [""; 0]);
}
