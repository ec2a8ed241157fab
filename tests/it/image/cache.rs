//! Images from servers and files with every fault.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use crate::http::Server;
use qvm::{
    image::{
        self, Cached, Error, Patience, Purpose, Tools,
        cache::{self, Needs},
        fetch,
        qemu_img::QemuImg,
    },
    spec::{Checksum, Format, Image, Origin},
    sys::{
        digest::Digesting,
        progress::{At, Cancel, Doing, Progress, Quiet},
    },
    value::{Algorithm, Digest, Explain},
};

/// Bytes without a pattern, always the same.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

fn digest(bytes: &[u8]) -> Digest {
    let digesting = Digesting::begin(Algorithm::Sha256).unwrap();
    digesting.take(&Arc::new(bytes.to_vec()));
    digesting.end().unwrap()
}

fn tools() -> Tools {
    let patience = Patience {
        silence: Duration::from_millis(600),
        attempts: 4,
        pause: Duration::from_millis(10),
    };
    Tools { qemu_img: QemuImg::new("qemu-img"), patience, now: jiff::Timestamp::UNIX_EPOCH }
}

fn at(url: String, bytes: &[u8]) -> Image {
    Image { origin: Origin::Http(url), checksum: Checksum::Digest(digest(bytes)) }
}

fn ensure(image: &Image, cache: &Path) -> Result<Cached, Error> {
    image::ensure(image, cache, Purpose::Copy, &tools(), &mut Quiet, &Cancel::default())
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Checks that the cache contains only this image, and that it is correct.
fn assert_only(cache: &Path, cached: &Cached, content: &[u8]) {
    assert!(std::fs::read(&cached.path).unwrap() == content, "the bytes differ");
    let mode = std::fs::metadata(&cached.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o440);
    let stem = cached.path.file_stem().unwrap().to_str().unwrap().to_owned();
    let names = files(cache);
    let left: Vec<_> = names.iter().filter(|n| !n.starts_with("sums-")).collect();
    let name = cached.path.file_name().unwrap().to_str().unwrap();
    let mut expected = [format!("{stem}.json"), format!("{stem}.lock"), name.to_owned()];
    expected.sort();
    assert_eq!(left, expected.iter().collect::<Vec<_>>());
}

fn qcow2(dir: &Path) -> Vec<u8> {
    let path = dir.join("made.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&path).arg("8M"));
    run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -P 7 0 2M"]).arg(&path));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

#[test]
fn image_is_downloaded_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images");
    let bytes = qcow2(dir.path());
    let server = Server::of(bytes.clone());
    let image = at(server.url("x.img"), &bytes);
    let cached = ensure(&image, &cache).unwrap();
    assert_eq!((cached.format, cached.virtual_size), (Format::Qcow2, 8 << 20));
    assert_eq!(cached.digest.as_ref(), Some(&digest(&bytes)));
    assert_only(&cache, &cached, &bytes);
    assert_eq!(std::fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o750);
    drop((cached, server));
    let again = ensure(&image, &cache).unwrap();
    assert!(again.found);
    assert_only(&cache, &again, &bytes);
}

#[test]
fn compression_is_detected_by_content() {
    for pack in [gz, xz, zst] {
        let dir = tempfile::tempdir().unwrap();
        let mut content = vec![0; 3 << 20];
        content[1 << 20..][..700_000].copy_from_slice(&noise(700_000));
        let packed = pack(&content);
        let server = Server::of(packed.clone());
        let cached = ensure(&at(server.url("x.qcow2"), &packed), dir.path()).unwrap();
        assert_eq!((cached.format, cached.virtual_size), (Format::Raw, 3 << 20));
        assert_only(dir.path(), &cached, &content);
        let room =
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&cached.path).unwrap());
        assert!(room * 512 < 2 << 20, "zeros were written");
    }
}

#[test]
fn interrupted_download_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(1_000_000);
    for (packed, name) in [(content.clone(), "raw"), (xz(&content), "xz")] {
        let cache = dir.path().join(name);
        let bytes = packed.clone();
        let server = Server::start(move |asked, reply| match asked.nth {
            0..3 => reply.cut(asked, &bytes, "\"v1\"", 300_000),
            _ => reply.well(asked, &bytes, "\"v1\""),
        });
        let cached = ensure(&at(server.url("x"), &packed), &cache).unwrap();
        assert_only(&cache, &cached, &content);
        let asked = server.asked();
        let from: Vec<_> = asked.iter().map(|a| a.from).collect();
        assert_eq!(from, [None, Some(300_000), Some(600_000), Some(900_000)], "{name}");
        assert!(asked[1..].iter().all(|a| a.if_range.as_deref() == Some("\"v1\"")));
    }
}

#[test]
fn changed_file_restarts_download() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (noise(500_000), noise(400_001)[1..].to_vec());
    let second = new.clone();
    let server = Server::start(move |asked, reply| match asked.nth {
        0 => reply.cut(asked, &old, "\"v1\"", 200_000),
        _ => reply.well(asked, &second, "\"v2\""),
    });
    let cached = ensure(&at(server.url("x"), &new), dir.path()).unwrap();
    assert_only(dir.path(), &cached, &new);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"v1\""));
}

#[test]
fn weak_validator_restarts_download() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(400_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, reply| match asked.nth {
        0 => reply.cut(asked, &served, "W/\"v1\"", 200_000),
        _ => reply.well(asked, &served, "W/\"v1\""),
    });
    let cached = ensure(&at(server.url("x"), &bytes), dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    assert!(server.asked().iter().all(|a| a.from.is_none()));
}

#[test]
fn missing_ranges_restart_download() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(400_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, reply| {
        let whole = crate::http::Asked { from: None, ..asked.clone() };
        match asked.nth {
            0 => reply.cut(&whole, &served, "\"v1\"", 200_000),
            _ => reply.well(&whole, &served, "\"v1\""),
        }
    });
    let cached = ensure(&at(server.url("x"), &bytes), dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    assert_eq!(server.asked()[1].from, Some(200_000));
}

#[test]
fn wrong_range_and_416_restart_download() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(400_000);
    for wrong in ["shifted", "416"] {
        let (served, cache) = (bytes.clone(), dir.path().join(wrong));
        let server = Server::start(move |asked, reply| match (asked.nth, wrong) {
            (0, _) => reply.cut(asked, &served, "\"v1\"", 200_000),
            (1, "416") => reply.head(416, &["Content-Range: bytes */5".into()]),
            (1, _) => {
                let range = "Content-Range: bytes 100000-399999/400000".to_owned();
                reply.head(206, &[range, "Content-Length: 300000".into()]);
                reply.send(&served[100_000..]);
            }
            _ => reply.well(asked, &served, "\"v1\""),
        });
        let cached = ensure(&at(server.url("x"), &bytes), &cache).unwrap();
        assert_only(&cache, &cached, &bytes);
        assert_eq!(server.asked().len(), 3, "{wrong}");
        assert_eq!(server.asked()[2].from, None, "{wrong}");
    }
}

#[test]
fn stalled_server_is_retried() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(400_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, reply| match asked.nth {
        0 => reply.stall(),
        1 => {
            reply.cut(asked, &served, "\"v1\"", 150_000);
            reply.stall();
        }
        _ => reply.well(asked, &served, "\"v1\""),
    });
    let cached = ensure(&at(server.url("x"), &bytes), dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    assert_eq!(server.asked()[2].from, Some(150_000));
}

#[test]
fn silent_server_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, reply| reply.stall());
    let error = ensure(&at(server.url("x"), b"x"), dir.path()).unwrap_err();
    let url = server.url("x");
    assert_eq!(
        chain(&error),
        format!("cannot download {url} (tried 4 times): no data received for 0.6 s")
    );
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn refusals_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    for (status, tries, said) in [
        (404, 1, "404 (not found)"),
        (403, 1, "403 (forbidden)"),
        (500, 4, "500 (server error) (tried 4 times)"),
        (503, 4, "503 (server error) (tried 4 times)"),
        (204, 1, "204"),
    ] {
        let server =
            Server::start(move |_, reply| reply.head(status, &["Content-Length: 0".into()]));
        let error = ensure(&at(server.url("x"), b"x"), dir.path()).unwrap_err();
        let expected =
            format!("cannot download {}: the server responded with status {said}", server.url("x"));
        assert_eq!(chain(&error), expected);
        assert_eq!(server.asked().len(), tries);
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

#[test]
fn unused_port_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let url = { Server::of(vec![]).url("x") };
    let error = chain(&ensure(&at(url, b"x"), dir.path()).unwrap_err());
    assert!(error.contains("tried 4 times") && error.contains("refused"), "{error}");
    assert_eq!(files(dir.path()), [""; 0]);
}

#[test]
fn redirects_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1000);
    let served = bytes.clone();
    let server = Server::start(move |asked, reply| match asked.path.as_str() {
        "/a" => reply.head(302, &["Location: /b".into(), "Content-Length: 0".into()]),
        "/b" => reply.well(asked, &served, "\"v1\""),
        _ => reply.head(302, &["Location: /loop".into(), "Content-Length: 0".into()]),
    });
    let cached = ensure(&at(server.url("a"), &bytes), dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    let error = ensure(&at(server.url("loop"), b"x"), &dir.path().join("2")).unwrap_err();
    assert!(chain(&error).ends_with("too many redirects"), "{}", chain(&error));
}

#[test]
fn wrong_checksum_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (noise(100_000), b"<not the image>".to_vec());
    // More or less than announced, and other content.
    let lies: [(usize, &[u8]); 3] =
        [(50_000, &right[..]), (right.len() + 7, &right[..]), (wrong.len(), &wrong[..])];
    for (length, sent) in lies {
        let bytes = sent.to_vec();
        let server = Server::start(move |_, reply| {
            reply.head(200, &[format!("Content-Length: {length}"), "ETag: \"a\"".into()]);
            reply.send(&bytes);
        });
        let error = ensure(&at(server.url("x"), &right), dir.path()).unwrap_err();
        let text = chain(&error);
        if length > right.len() {
            // No event reports that the rest will never arrive: retried and given up.
            assert!(text.contains("the connection was closed early"), "{text}");
            std::fs::remove_dir_all(dir.path()).unwrap();
            std::fs::create_dir(dir.path()).unwrap();
            continue;
        }
        let found = digest(&sent[..length]);
        let url = server.url("x");
        let expected = digest(&right);
        assert_eq!(
            text,
            format!("the checksum of {url} is wrong: found {found}, expected {expected}")
        );
        assert!(error.hint().unwrap().contains("the download was discarded"));
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

#[test]
fn body_of_unknown_length() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(300_000);
    for chunked in [true, false] {
        let (served, cache) = (bytes.clone(), dir.path().join(chunked.to_string()));
        let server = Server::start(move |_, reply| {
            if !chunked {
                reply.head(200, &[]);
                return reply.send(&served);
            }
            reply.head(200, &["Transfer-Encoding: chunked".into()]);
            for chunk in served.chunks(70_000) {
                reply.send(format!("{:x}\r\n", chunk.len()).as_bytes());
                reply.send(chunk);
                reply.send(b"\r\n");
            }
            reply.send(b"0\r\n\r\n");
        });
        let cached = ensure(&at(server.url("x"), &bytes), &cache).unwrap();
        assert_only(&cache, &cached, &bytes);
    }
}

#[test]
fn damaged_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = qcow2(dir.path());
    let content = noise(400_000);
    let mut header = whole.clone();
    header[7] = 9;
    let packed = xz(&content);
    let vmdk = [b"KDMV".to_vec(), noise(2000)].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (whole[..whole.len() - 70_000].to_vec(), "is corrupt or truncated"),
        (whole[..60].to_vec(), "the file ends within the qcow2 header"),
        (header, "qcow2 version 9 is not supported"),
        (packed[..packed.len() - 100].to_vec(), "is damaged, though its checksum is right"),
        (gz(&content)[..200_000].to_vec(), "the gzip stream is damaged or incomplete"),
        (zst(&content)[..200_000].to_vec(), "the zstd stream is damaged or incomplete"),
        ([xz(&content), b"x".to_vec()].concat(), "other bytes follow the xz stream"),
        ([gz(&content), gz(&content)[..9].to_vec()].concat(), "the gzip stream is damaged"),
        (vmdk.clone(), "is a VMDK image; an image must be qcow2 or raw"),
        (gz(&vmdk), "is a VMDK image"),
        (gz(&gz(&content)), "is gzip within a compressed file"),
        (b"<!DOCTYPE html><title>Login</title>".to_vec(), "is a web page"),
        (Vec::new(), "is empty"),
    ];
    let cache = dir.path().join("images");
    for (bytes, said) in cases {
        let server = Server::of(bytes.clone());
        let error = ensure(&at(server.url("x"), &bytes), &cache).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(said) && text.contains(&server.url("x")), "{text}");
        assert_eq!(files(&cache), [""; 0], "{text}");
    }
}

#[test]
fn image_with_external_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.qcow2");
    let make = |args: &[&str]| {
        let _ = std::fs::remove_file(&path);
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args(args)
            .arg(&path)
            .arg("1M"));
        std::fs::read(&path).unwrap()
    };
    let data = dir.path().join("data");
    let option = format!("data_file={},data_file_raw=on", data.display());
    let outside = [
        (
            make(&["-u", "-b", "/etc/shadow", "-F", "raw"]),
            "the image has a backing file, `/etc/shadow`",
        ),
        (make(&["-o", &option]), "the image has an external data file"),
    ];
    let cache = dir.path().join("images");
    for (bytes, said) in outside {
        let server = Server::of(bytes.clone());
        let error = ensure(&at(server.url("x"), &bytes), &cache).unwrap_err();
        let expected = format!("{} is refused: {said}", server.url("x"));
        assert_eq!(chain(&error), expected);
        assert_eq!(files(&cache), [""; 0]);
        std::fs::write(&path, &bytes).unwrap();
        let image = Image { origin: Origin::Path(path.clone()), checksum: Checksum::None };
        assert!(chain(&ensure(&image, &cache).unwrap_err()).ends_with(said));
    }
}

#[test]
fn checksum_file_is_downloaded_once() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(10_000);
    let sums = format!("{}  other.raw\n{} *disk image.raw\n", "0".repeat(64), digest(&bytes).hex());
    let (served, text) = (bytes.clone(), sums.clone());
    let server = Server::start(move |asked, reply| match asked.path.as_str() {
        "/SHA256SUMS" => reply.well(asked, text.as_bytes(), "\"s\""),
        _ => reply.well(asked, &served, "\"v1\""),
    });
    let image = Image {
        origin: Origin::Http(server.url("disk%20image.raw?mirror=1")),
        checksum: Checksum::Sums(server.url("SHA256SUMS")),
    };
    let cached = ensure(&image, dir.path()).unwrap();
    assert_eq!(cached.digest, Some(digest(&bytes)));
    assert_only(dir.path(), &cached, &bytes);
    let near = Image { origin: Origin::Http(server.url("disk_image.raw")), ..image.clone() };
    let error = ensure(&near, dir.path()).unwrap_err();
    assert_eq!(
        chain(&error),
        format!(
            "no checksum for {} in {}: `disk_image.raw` is not in the list; \
             it contains `disk image.raw` and `other.raw`",
            server.url("disk_image.raw"),
            server.url("SHA256SUMS")
        )
    );
    drop((cached, server));
    assert!(ensure(&image, dir.path()).unwrap().found, "the digest was not remembered");
}

#[test]
fn unverified_image_is_marked() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(10_000);
    let server = Server::of(bytes.clone());
    let image = Image { origin: Origin::Http(server.url("x")), checksum: Checksum::None };
    let cached = ensure(&image, dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    assert_eq!(cached.digest, None);
    assert!(cached.path.file_name().unwrap().to_str().unwrap().starts_with("unverified-url-"));
    drop(cached);
    assert!(ensure(&image, dir.path()).unwrap().found);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn truncated_cache_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(10_000);
    let server = Server::of(bytes.clone());
    let image = at(server.url("x"), &bytes);
    let path = ensure(&image, dir.path()).unwrap().path;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(9_999).unwrap();
    let cached = ensure(&image, dir.path()).unwrap();
    assert!(!cached.found);
    assert_only(dir.path(), &cached, &bytes);
}

#[test]
fn local_image_is_verified_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (dir.path().join("x.img"), dir.path().join("images"));
    let bytes = qcow2(dir.path());
    std::fs::write(&path, &bytes).unwrap();
    let mut image = Image { origin: Origin::Path(path.clone()), checksum: Checksum::None };
    let cached = ensure(&image, &cache).unwrap();
    assert_eq!((&cached.path, cached.format), (&path, Format::Qcow2));
    image.checksum = Checksum::Digest(digest(&bytes));
    assert_eq!(ensure(&image, &cache).unwrap().digest, Some(digest(&bytes)));
    image.checksum = Checksum::Digest(digest(b""));
    assert!(matches!(ensure(&image, &cache).unwrap_err(), Error::Mismatch { .. }));
    assert!(!cache.exists(), "nothing of this is the cache's");

    // A compressed image is decompressed into the cache; a base image is copied there; then the
    // source may be removed.
    std::fs::write(&path, gz(&bytes)).unwrap();
    image.checksum = Checksum::Digest(digest(&gz(&bytes)));
    assert_only(&cache, &ensure(&image, &cache).unwrap(), &bytes);
    std::fs::remove_file(&path).unwrap();
    assert!(ensure(&image, &cache).unwrap().found);
    image.checksum = Checksum::None;
    let gone = chain(&ensure(&image, &cache).unwrap_err());
    assert_eq!(
        gone,
        format!("cannot read `{}`: No such file or directory (os error 2)", path.display())
    );
}

#[test]
fn download_can_be_canceled_at_any_wait() {
    let bytes = noise(400_000);
    for stage in ["head", "body", "pause", "lock"] {
        let dir = tempfile::tempdir().unwrap();
        let served = bytes.clone();
        let server = Server::start(move |asked, reply| match stage {
            "head" => reply.stall(),
            "pause" => reply.head(503, &["Content-Length: 0".into()]),
            _ => {
                reply.cut(asked, &served, "\"v1\"", 150_000);
                reply.stall();
            }
        });
        let image = at(server.url("x"), &bytes);
        let patience = Patience {
            silence: Duration::from_secs(600),
            attempts: 9,
            pause: Duration::from_secs(600),
        };
        let tools = Tools { patience, ..tools() };
        let (cancel, other) = (Cancel::default(), Cancel::default());
        let fetch = |cancel: &Cancel| {
            image::ensure(&image, dir.path(), Purpose::Copy, &tools, &mut Quiet, cancel)
        };
        std::thread::scope(|scope| {
            let holder = (stage == "lock").then(|| {
                let holder = scope.spawn(|| fetch(&other));
                wait_until(|| !server.asked().is_empty());
                holder
            });
            let work = scope.spawn(|| fetch(&cancel));
            wait_until(|| !server.asked().is_empty());
            std::thread::sleep(Duration::from_millis(150));
            assert!(!work.is_finished(), "{stage}");
            let since = Instant::now();
            cancel.set();
            let error = work.join().unwrap().unwrap_err();
            // The documented limit is one second; a loaded machine gets more before the test fails.
            assert!(since.elapsed() < Duration::from_secs(5), "{stage}: {:?}", since.elapsed());
            assert!(error.is_canceled(), "{stage}: {}", chain(&error));
            other.set();
            holder.map(|h| h.join().unwrap().unwrap_err());
        });
        let left = files(dir.path());
        assert!(left.iter().all(|f| f.contains(".part")), "{stage}: {left:?}");
    }
}

fn wait_until(done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Records its messages.
#[derive(Default)]
struct Told {
    notes: Vec<String>,
    doing: Vec<Doing>,
    done: Vec<u64>,
}

impl Progress for Told {
    fn at(&mut self, at: &At<'_>) {
        self.doing.push(at.doing);
        self.done.push(at.done);
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

#[test]
fn progress_and_retries_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(600_000);
    let served = bytes.clone();
    let server = Server::start(move |asked, reply| match asked.nth {
        0 => reply.cut(asked, &served, "\"v1\"", 150_000),
        _ => reply.well(asked, &served, "\"v1\""),
    });
    let mut told = Told::default();
    let image = at(server.url("x"), &bytes);
    let cached =
        image::ensure(&image, dir.path(), Purpose::Copy, &tools(), &mut told, &Cancel::default());
    cached.unwrap();
    assert_eq!(
        told.notes,
        [format!(
            "{}: the connection was closed early; retrying in 0.01 s, from 1 MiB",
            server.url("x")
        )]
    );
    assert!(told.doing.contains(&Doing::Fetching));
    assert!(told.done.is_sorted() && told.done.last() > Some(&150_000), "{:?}", told.done);
}

#[test]
fn two_threads_download_once() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(500_000);
    let served = bytes.clone();
    let second_waits = Arc::new(Barrier::new(2));
    let go = Arc::clone(&second_waits);
    let server = Server::start(move |asked, reply| {
        reply.head(200, &[format!("Content-Length: {}", served.len())]);
        reply.send(&served[..100_000]);
        if asked.nth == 0 {
            go.wait();
        }
        reply.send(&served[100_000..]);
    });
    struct Waits(Arc<Barrier>, Vec<String>);
    impl Progress for Waits {
        fn at(&mut self, _: &At<'_>) {}
        fn note(&mut self, text: &str) {
            self.1.push(text.to_owned());
            self.0.wait();
        }
    }
    let image = at(server.url("x"), &bytes);
    let tools = Tools { patience: Patience::default(), ..tools() };
    let mut waits = Waits(second_waits, Vec::new());
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            image::ensure(&image, dir.path(), Purpose::Copy, &tools, &mut Quiet, &Cancel::default())
        });
        wait_until(|| !server.asked().is_empty());
        let cancel = Cancel::default();
        let second = image::ensure(&image, dir.path(), Purpose::Copy, &tools, &mut waits, &cancel);
        let (first, second) = (first.join().unwrap().unwrap(), second.unwrap());
        assert!(!first.found && second.found);
        assert_only(dir.path(), &second, &bytes);
    });
    assert_eq!(server.asked().len(), 1);
    let by = format!(
        "waiting for process {}, which is downloading {}",
        std::process::id(),
        server.url("x")
    );
    assert_eq!(waits.1, [by]);
    assert!(!files(dir.path()).iter().any(|f| f.ends_with(".lock")), "a lock file is left");
}

/// A process that downloads `QVM_TEST_URL` into `QVM_TEST_CACHE`, started by the tests below.
#[test]
#[ignore = "a child of other tests"]
fn child() {
    let env = |name| std::env::var(name).unwrap();
    let checksum = Checksum::Digest(env("QVM_TEST_DIGEST").parse().unwrap());
    let image = Image { origin: Origin::Http(env("QVM_TEST_URL")), checksum };
    match ensure(&image, Path::new(&env("QVM_TEST_CACHE"))) {
        Ok(cached) => println!("\nchild: found={}", cached.found),
        Err(e) => println!("\nchild: {} | {}", chain(&e), e.hint().unwrap_or_default()),
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn child_command(program: &mut Command, image: &Image, cache: &Path) -> Killed {
    let (Origin::Http(url), Checksum::Digest(digest)) = (&image.origin, &image.checksum) else {
        panic!("a child fetches with a digest")
    };
    program
        .args(["--exact", "image::cache::child", "--ignored", "--nocapture"])
        .env("QVM_TEST_URL", url)
        .env("QVM_TEST_DIGEST", digest.to_string())
        .env("QVM_TEST_CACHE", cache)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    Killed(program.spawn().unwrap())
}

fn answer(mut child: Killed) -> String {
    let mut text = String::new();
    let mut out = child.0.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut out, &mut text).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("child: "));
    line.unwrap_or_else(|| panic!("the child printed: {text}")).to_owned()
}

fn part_of(cache: &Path) -> Option<(PathBuf, u64)> {
    let entries = std::fs::read_dir(cache).ok()?;
    let part = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension() == Some("part".as_ref()))?;
    let length = std::fs::metadata(&part).ok()?.len();
    Some((part, length))
}

/// Kills a child in the middle of a download of `packed`; returns the server that counts requests.
fn killed_in_the_middle(packed: &[u8], cache: &Path) -> (Server, Image) {
    let served = packed.to_vec();
    let server = Server::start(move |asked, reply| match asked.nth {
        0 => {
            reply.cut(asked, &served, "\"v1\"", 300_000);
            reply.stall();
        }
        _ => reply.well(asked, &served, "\"v1\""),
    });
    let image = at(server.url("x"), packed);
    let exe = std::env::current_exe().unwrap();
    let mut child = child_command(&mut Command::new(exe), &image, cache);
    wait_until(|| part_of(cache).is_some_and(|(_, length)| length == 300_000));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    (server, image)
}

#[test]
fn killed_download_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(700_000);
    for (packed, name) in [(content.clone(), "raw"), (gz(&content), "gz"), (zst(&content), "zst")] {
        let cache = dir.path().join(name);
        let (server, image) = killed_in_the_middle(&packed, &cache);
        let cached = ensure(&image, &cache).unwrap();
        assert_only(&cache, &cached, &content);
        assert_eq!(server.asked().last().unwrap().from, Some(300_000), "{name}");
    }
}

#[test]
fn damaged_partial_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(700_000);
    let (server, image) = killed_in_the_middle(&bytes, dir.path());
    let (part, length) = part_of(dir.path()).unwrap();
    std::fs::write(part, vec![0; length as usize]).unwrap();
    let cached = ensure(&image, dir.path()).unwrap();
    assert_only(dir.path(), &cached, &bytes);
    let from: Vec<_> = server.asked().iter().map(|a| a.from).collect();
    assert_eq!(from[from.len() - 2..], [Some(300_000), None]);
}

#[test]
fn two_processes_download_once() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(2_000_000);
    let server = Server::of(bytes.clone());
    let image = at(server.url("x"), &bytes);
    let exe = std::env::current_exe().unwrap();
    let children: Vec<Killed> =
        (0..3).map(|_| child_command(&mut Command::new(&exe), &image, dir.path())).collect();
    let mut answers: Vec<String> = children.into_iter().map(answer).collect();
    answers.sort();
    assert_eq!(answers, ["found=false", "found=true", "found=true"]);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn full_file_system_is_reported() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: not root, cannot mount a tmpfs");
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(4_000_000);
    for told in [true, false] {
        let served = bytes.clone();
        let server = Server::start(move |asked, reply| {
            if told {
                return reply.well(asked, &served, "\"v1\"");
            }
            reply.head(200, &["ETag: \"v1\"".into()]);
            reply.send(&served);
        });
        let image = at(server.url("x"), &bytes);
        let script = "mount -t tmpfs -o size=2m tmpfs \"$QVM_TEST_CACHE\" || \
                      exit 3; \"$0\" \"$@\"; ls -A \"$QVM_TEST_CACHE\"; echo left";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
        let mut child = child_command(&mut command, &image, dir.path());
        let mut text = String::new();
        std::io::Read::read_to_string(child.0.stdout.as_mut().unwrap(), &mut text).unwrap();
        if child.0.wait().unwrap().code() == Some(3) {
            return println!("skipped: no mount namespace to be had");
        }
        let said = text
            .lines()
            .find_map(|l| l.strip_prefix("child: "))
            .unwrap_or_else(|| panic!("{text}"));
        let expected =
            if told { "it has 4 MiB, but 2 MiB are free" } else { "No space left on device" };
        assert!(said.contains(expected) && said.contains("qvm image prune"), "{said}");
        let after =
            text.lines().skip_while(|l| !l.starts_with("test result")).filter(|l| !l.is_empty());
        assert_eq!(after.skip(1).collect::<Vec<_>>(), ["left"], "something was left: {text}");
    }
}

#[test]
fn list_remove_and_prune() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, vms) = (dir.path().join("images"), dir.path().join("vms"));
    let mut paths = Vec::new();
    for n in 0..3 {
        let bytes = noise(10_000 + n);
        let server = Server::of(bytes.clone());
        paths.push(ensure(&at(server.url(&format!("{n}.raw")), &bytes), &cache).unwrap().path);
    }
    // A VM without a VM file has an overlay on the first image.
    std::fs::create_dir_all(vms.join("old")).unwrap();
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(&paths[0])
        .arg(vms.join("old/root.qcow2")));
    std::fs::write(cache.join("notes.txt"), "the operator's").unwrap();
    std::fs::write(cache.join(format!("sha256-{}.part", "0".repeat(64))), "x").unwrap();
    let needs = Needs { vm_states: &vms, vms: &[] };

    let listed = cache::list(&cache, &needs).unwrap();
    assert_eq!(listed.len(), 3);
    let first = listed.iter().find(|l| l.file == paths[0]).unwrap();
    assert_eq!((first.used_by.clone(), first.verified), (vec!["old".to_owned()], true));

    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let error = cache::remove(&cache, &needs, &name(&paths[0])).unwrap_err();
    assert!(matches!(error, cache::Error::Base { .. }), "{error}");
    assert!(error.to_string().contains("old/root.qcow2"), "{error}");
    assert!(matches!(cache::remove(&cache, &needs, "nothing"), Err(cache::Error::Unknown(_))));
    let digits = &name(&paths[1])[7..17];
    assert_eq!(cache::remove(&cache, &needs, digits).unwrap(), paths[1]);
    assert!(!paths[1].exists());

    let dry = cache::prune(&cache, &needs, true).unwrap();
    assert_eq!(dry.len(), 2, "{dry:?}");
    assert!(paths[2].exists());
    assert_eq!(cache::prune(&cache, &needs, false).unwrap(), dry);
    let left = files(&cache);
    assert_eq!(left.len(), 3, "the base, its record and the operator's file: {left:?}");
    assert!(paths[0].exists() && left.contains(&"notes.txt".to_owned()));
}

#[test]
fn image_in_use_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(10_000);
    let server = Server::of(bytes.clone());
    let cached = ensure(&at(server.url("x"), &bytes), dir.path()).unwrap();
    let needs = Needs { vm_states: &dir.path().join("vms"), vms: &[] };
    let url = server.url("x");
    let error = cache::remove(dir.path(), &needs, &url).unwrap_err();
    assert!(matches!(error, cache::Error::Busy { .. }), "{error}");
    assert!(cache::prune(dir.path(), &needs, false).unwrap().is_empty());
    drop(cached);
    cache::remove(dir.path(), &needs, &url).unwrap();
    assert_eq!(files(dir.path()), [""; 0]);
}

/// openssl(1) serves files of `dir` by https, with a certificate for `localhost`.
fn tls_server(dir: &Path) -> Option<(Killed, u16)> {
    let (key, cert) = (dir.join("key.pem"), dir.join("cert.pem"));
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ed25519",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ])
    .args(["-addext", "subjectAltName=DNS:localhost"])
    .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
    .arg(&key)
    .arg("-out")
    .arg(&cert);
    if !make.output().is_ok_and(|o| o.status.success()) {
        println!("skipped: no openssl to make a certificate with");
        return None;
    }
    let mut serve = Command::new("openssl");
    serve
        .args(["s_server", "-accept", "127.0.0.1:0", "-WWW", "-key"])
        .arg(&key)
        .arg("-cert")
        .arg(&cert);
    serve.current_dir(dir).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut server = Killed(serve.spawn().unwrap());
    let out = std::io::BufReader::new(server.0.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(out).map_while(Result::ok);
    let port = lines.find_map(|l| l.strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok()).unwrap();
    // Its other output must be read.
    std::thread::spawn(move || lines.count());
    Some((server, port))
}

#[test]
fn https_uses_the_system_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_server, port)) = tls_server(dir.path()) else { return };
    let bytes = noise(50_000);
    std::fs::write(dir.path().join("x.raw"), &bytes).unwrap();
    let image = at(format!("https://localhost:{port}/x.raw"), &bytes);
    let exe = std::env::current_exe().unwrap();
    let cache = dir.path().join("images");

    let refused = answer(child_command(&mut Command::new(&exe), &image, &cache));
    let expected = format!(
        "cannot download https://localhost:{port}/x.raw: the server's certificate is not valid: "
    );
    assert!(refused.starts_with(&expected), "{refused}");
    assert!(refused.contains("update-ca-certificates"), "{refused}");
    assert_eq!(files(&cache), [""; 0]);

    // A minimal Debian has no package ca-certificates.
    let mut bare = Command::new(&exe);
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    bare.env("SSL_CERT_FILE", dir.path().join("empty.pem")).env_remove("SSL_CERT_DIR");
    let refused = answer(child_command(&mut bare, &image, &cache));
    assert!(refused.contains("no certificate authority"), "{refused}");
    assert!(refused.contains("`ca-certificates`"), "{refused}");
    assert_eq!(files(&cache), [""; 0]);

    let mut trusting = Command::new(&exe);
    trusting.env("SSL_CERT_FILE", dir.path().join("cert.pem"));
    assert_eq!(answer(child_command(&mut trusting, &image, &cache)), "found=false");

    let other = at(format!("https://127.0.0.1:{port}/x.raw"), b"another");
    let mut trusting = Command::new(&exe);
    trusting.env("SSL_CERT_FILE", dir.path().join("cert.pem"));
    let refused = answer(child_command(&mut trusting, &other, &cache));
    assert!(refused.contains("certificate is not valid: "), "{refused}");
    println!("{refused}");
}

#[test]
fn https_uses_proxy_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_server, port)) = tls_server(dir.path()) else { return };
    let bytes = noise(50_000);
    std::fs::write(dir.path().join("x.raw"), &bytes).unwrap();
    let image = at(format!("https://localhost:{port}/x.raw"), &bytes);
    let to = format!("127.0.0.1:{port}");
    let proxy = Server::start(move |_, reply| reply.tunnel(&to));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("SSL_CERT_FILE", dir.path().join("cert.pem"));
    command.env("https_proxy", proxy.url("").replace("http://", "http://u:p@"));
    let cache = dir.path().join("images");
    assert_eq!(answer(child_command(&mut command, &image, &cache)), "found=false");
    let asked = &proxy.asked()[0];
    assert_eq!((&*asked.method, asked.path.clone()), ("CONNECT", format!("localhost:{port}")));
    assert_eq!(asked.proxy_authorization.as_deref(), Some("Basic dTpw"));
}

#[test]
fn checksum_file_may_name_redirect_target() {
    let bytes = noise(10_000);
    let digest_of = digest(&bytes);
    let others = format!("{}  other.raw\n{0}  more.raw\n", "0".repeat(64));
    for (listed, found) in [("x-Build18.71.raw", true), ("y.raw", false)] {
        let dir = tempfile::tempdir().unwrap();
        let (served, text) = (bytes.clone(), format!("{others}{}  {listed}\n", digest_of.hex()));
        let server = Server::start(move |asked, reply| match asked.path.as_str() {
            "/SHA256SUMS" => reply.well(asked, text.as_bytes(), "\"s\""),
            "/x.raw" => {
                let to = "Location: /mirror/x-Build18.71.raw".to_owned();
                reply.head(302, &[to, "Content-Length: 0".into()]);
            }
            _ => reply.well(asked, &served, "\"v1\""),
        });
        let origin = Origin::Http(server.url("x.raw"));
        let image = Image { origin, checksum: Checksum::Sums(server.url("SHA256SUMS")) };
        match ensure(&image, dir.path()) {
            Ok(cached) => assert!(found && cached.digest.as_ref() == Some(&digest_of)),
            Err(error) => assert!(!found, "{}", chain(&error)),
        }
    }
}

#[test]
fn trailing_bytes_are_ignored_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(100_000);
    let metadata = b"\0\0\0\0\0\0\0\0{ \"metadata_version\": \"1.1\" }\nFWx0".to_vec();
    for tail in [metadata, vec![0; 4096]] {
        let packed = [gz(&content), tail.clone()].concat();
        let cache = dir.path().join(format!("{}", tail.len()));
        let server = Server::of(packed.clone());
        let mut told = Told::default();
        let image = at(server.url("x.img.gz"), &packed);
        let (purpose, cancel) = (Purpose::Copy, Cancel::default());
        let cached = image::ensure(&image, &cache, purpose, &tools(), &mut told, &cancel).unwrap();
        assert_only(&cache, &cached, &content);
        assert_eq!(told.notes.len(), 1);
        assert!(told.notes[0].contains(&format!(" {} bytes ", tail.len())), "{:?}", told.notes);
    }
}

#[test]
fn memory_limit_is_not_reported_as_damage() {
    let dir = tempfile::tempdir().unwrap();
    // The header of a frame with a window of 2 GiB, as `zstd --long=31` writes it.
    let packed = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    let server = Server::of(packed.to_vec());
    let error = ensure(&at(server.url("x"), &packed), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{}", chain(&error));
    assert!(error.hint().unwrap().contains("--long=31"));
}

#[test]
fn plain_http_on_https_port_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, reply| reply.send(b"x"));
    let url = server.url("x").replace("http://", "https://");
    let error = ensure(&at(url.clone(), b"x"), dir.path()).unwrap_err();
    assert!(matches!(error, Error::Fetch(fetch::Error::Download { .. })), "{}", chain(&error));
    assert!(chain(&error).starts_with(&format!("cannot download {url}")), "{}", chain(&error));
    println!("{}", chain(&error));
}

/// Flips one bit of a file without a change of its size and time.
fn rots(path: &Path) {
    let before = std::fs::metadata(path).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, before.permissions()).unwrap();
    std::fs::File::open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
}

#[test]
fn corrupted_cache_image_is_downloaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let content = noise(400_000);
    for bytes in [content.clone(), gz(&content)] {
        let cache = dir.path().join(format!("images-{}", bytes.len()));
        let server = Server::of(bytes.clone());
        let image = at(server.url("x"), &bytes);
        let first = ensure(&image, &cache).unwrap();
        let path = first.path.clone();
        drop(first);
        for purpose in [Purpose::Copy, Purpose::Base, Purpose::Refresh] {
            let asked = server.asked().len();
            rots(&path);
            let cached =
                image::ensure(&image, &cache, purpose, &tools(), &mut Quiet, &Cancel::default())
                    .unwrap();
            assert!(!cached.found);
            assert_only(&cache, &cached, &content);
            assert_eq!(server.asked().len(), asked + 1);
            // An intact file is found.
            drop(cached);
            assert!(ensure(&image, &cache).unwrap().found);
        }
        // Without the server it is reported and never used; the file stays.
        drop(server);
        rots(&path);
        let error = ensure(&image, &cache).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(&format!("is damaged in the cache: `{}`", path.display())), "{text}");
        assert!(text.contains("it cannot be replaced: "), "{text}");
        assert!(error.is_host_fault() && path.exists());
    }
}

#[test]
fn corrupted_unverified_image_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images");
    let server = Server::of(noise(100_000));
    let image = Image { origin: Origin::Http(server.url("x")), checksum: Checksum::None };
    let path = ensure(&image, &cache).unwrap().path;
    rots(&path);
    let error = ensure(&image, &cache).unwrap_err();
    assert_eq!(server.asked().len(), 1);
    assert!(error.hint().unwrap().contains(&format!("`qvm image rm {}`", server.url("x"))));
}
