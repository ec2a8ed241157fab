//! What comes before a VM runs: the image into the cache, the disk out of it, the seed.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use qvm::plan::seed::{self, Documents};

#[path = "../tests/http/mod.rs"]
#[allow(dead_code)]
mod http;

use super::{
    place::{Place, guest, timed},
    table::Row,
};

/// The image into the cache, and a disk out of it.
pub(crate) fn images(runs: usize) -> Vec<Row> {
    let place = Place::new();
    let Some(image) = guest("debian-12.qcow2") else { panic!("no Debian image: `make debian`") };
    let sums = Command::new("sha256sum").arg(&image).output().unwrap();
    let sum = String::from_utf8(sums.stdout).unwrap()[..64].to_owned();
    let server = http::Server::of(fs::read(&image).unwrap());
    let url = server.url("debian.qcow2");
    let (mut pulls, mut hashes) = (vec![], vec![]);
    for _ in 0..runs {
        let _ = fs::remove_dir_all(place.path("s/images"));
        pulls.push(place.timed(&["image", "pull", &url, "--sha256", &sum]));
        hashes
            .push(timed(Command::new("sha256sum").arg(&image).stdout(std::process::Stdio::null())));
    }
    let (mut disks, mut copies) = (vec![], vec![]);
    let text =
        format!("accel = \"tcg\"\nmem = \"64M\"\n[image]\nurl = \"{url}\"\nsha256 = \"{sum}\"\n");
    fs::write(place.path("c/vms/web.toml"), text).unwrap();
    let mut first = place.run("web");
    let started = |place: &Place| {
        let mut started = place.run("web");
        place.timed(&["kill", "web"]);
        started.child.wait().unwrap();
        started.took
    };
    place.timed(&["kill", "web"]);
    first.child.wait().unwrap();
    for _ in 0..runs {
        let prepared = started(&place);
        fs::remove_file(place.path("s/vms/web/root.qcow2")).unwrap();
        let both = started(&place);
        disks.push(both.saturating_sub(prepared));
        copies.push(copied(&image, &place.path("copy")));
    }
    vec![
        Row::ratio("image into the cache", &pulls, ("`sha256sum`", &hashes), ("1.2 ×", 1.2)),
        Row::ratio(
            "disk from a cached qcow2",
            &disks,
            ("`cp` and `sync`", &copies),
            ("1.2 ×", 1.2),
        ),
    ]
}

/// A copy that is on the disk when it is done, as a VM's has to be.
fn copied(from: &Path, to: &Path) -> Duration {
    let _ = fs::remove_file(to);
    timed(Command::new("sh").args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""]).arg(from).arg(to))
}

/// The seed, from its documents to the file.
pub(crate) fn seed(runs: usize) -> Row {
    let place = Place::new();
    let documents = Documents {
        meta_data: "instance-id: iid-web-0001\nlocal-hostname: web\n".into(),
        user_data: "#cloud-config\nhostname: web\n".repeat(20),
        network_config: "version: 2\n".repeat(20),
    };
    let file = place.path("seed.iso");
    let ours: Vec<Duration> = (0..runs)
        .map(|_| {
            let _ = fs::remove_file(&file);
            let begun = Instant::now();
            let bytes = seed::image(&documents).unwrap();
            qvm::host::file::write(&file, &bytes, 0o600).unwrap();
            begun.elapsed()
        })
        .collect();
    let row = Row::at_most("seed ISO", &ours, ("2 ms", Duration::from_millis(2)));
    let source = place.path("seed");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("user-data"), &documents.user_data).unwrap();
    let mut xorriso = Command::new("xorriso");
    xorriso.args(["-as", "genisoimage", "-quiet", "-J", "-r", "-V", "cidata", "-o"]);
    xorriso.arg(place.path("other.iso")).arg(&source);
    xorriso.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let begun = Instant::now();
    let beside = match xorriso.status() {
        Ok(status) if status.success() => {
            format!("xorriso {}", super::table::shown(begun.elapsed()))
        }
        _ => String::new(),
    };
    Row { beside, ..row }
}
