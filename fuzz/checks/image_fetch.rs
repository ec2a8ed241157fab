//! An image from a server that breaks off, starts anew, sends other bytes and other ranges, and from what an earlier attempt has left: what
//! comes into the cache under a digest has that digest, and what does not come leaves nothing that is taken for an image.

use std::{
    collections::VecDeque,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use qvm::{
    cli::{exit::Failure, table::Screen},
    image::{Cached, Error, Patience, Purpose, Tools, ensure, qemu_img::QemuImg},
    spec::{Checksum, Image, Origin},
    sys::progress::{Cancel, Quiet},
    value::{Algorithm, Digest, Explain},
};
use sha2::{Digest as _, Sha256};

use super::Cut;

/// The image, and then what the server does, request by request; two attempts are made. Without a checksum where bit 0 of the first byte is
/// set.
pub fn check(bytes: &[u8]) {
    let mut cut = Cut(bytes);
    let (choice, content) = (cut.byte(), cut.long());
    let mut script = VecDeque::new();
    while !cut.is_empty() && script.len() < 8 {
        script.push_back((cut.byte(), cut.short()));
    }
    let redirects =
        |said: &[u8]| said.to_ascii_lowercase().windows(8).any(|part| part == b"location");
    if script.iter().any(|(_, said)| redirects(said)) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/x.raw", listener.local_addr().expect("an address"));
    let verified = choice & 1 == 0;
    let image = image(&url, verified.then(|| sha256(content)));
    let dir = tempfile::tempdir().expect("a directory");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&listener, &stop, content, script));
        for _ in 0..2 {
            let got = get(&image, dir.path());
            let is_image = |name: &str| name.ends_with(".raw") || name.ends_with(".qcow2");
            match got {
                Ok(cached) if verified => {
                    let packed = qvm::image::reference::Compression::of(content).is_some();
                    let bytes = fs::read(&cached.path).expect("a file");
                    assert!(packed || bytes == content, "not what has the digest");
                }
                Ok(cached) => assert!(cached.path.is_file()),
                Err(error) => {
                    super::is_tame(
                        &Failure::from_error(&error).hint(error.hint()).shown(Screen::default()),
                    );
                    let left = fs::read_dir(dir.path()).expect("a cache");
                    let left = left.map(|one| one.expect("a name").file_name().into_string());
                    let left: Vec<String> = left.map(|name| name.expect("text")).collect();
                    assert!(!left.iter().any(|name| is_image(name)), "{error} left {left:?}");
                }
            }
        }
        stop.store(true, Ordering::Release);
        drop(TcpStream::connect(listener.local_addr().expect("an address")));
    });
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Without a digest, as `insecureNoChecksum` has it: the pieces are then all that there is to go by.
fn image(url: &str, sha256: Option<String>) -> Image {
    let checksum = match sha256 {
        Some(hex) => Checksum::Digest(Digest::new(Algorithm::Sha256, &hex).expect("a digest")),
        None => Checksum::None,
    };
    Image { origin: Origin::Http(url.to_owned()), checksum }
}

fn get(image: &Image, cache: &Path) -> Result<Cached, Error> {
    let second = Duration::from_secs(1);
    let patience = Patience { silence: 5 * second, attempts: 3, pause: second / 1000 };
    let qemu_img = QemuImg::new("/nowhere/qemu-img");
    let tools = Tools { qemu_img, patience, now: jiff::Timestamp::UNIX_EPOCH };
    ensure(image, cache, Purpose::Base, &tools, &mut Quiet, &Cancel::default())
}

/// Answers as the script has it; then it knows of no such file.
fn serve(
    listener: &TcpListener,
    stop: &AtomicBool,
    content: &[u8],
    mut script: VecDeque<(u8, &[u8])>,
) {
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let mut asked = vec![0; 4096];
        let count = stream.read(&mut asked).unwrap_or_default();
        let asked = String::from_utf8_lossy(&asked[..count]).to_ascii_lowercase();
        let range = asked.split_once("range: bytes=").and_then(|(_, rest)| rest.split('-').next());
        let from = range.and_then(|from| from.parse::<usize>().ok());
        let answer = match script.pop_front() {
            Some((how, said)) => answer(how, said, content, from),
            None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        };
        let _ = stream.write_all(&answer);
    }
}

fn answer(how: u8, said: &[u8], content: &[u8], from: Option<usize>) -> Vec<u8> {
    let with = |status: &str, length: usize, more: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n");
        [head.as_bytes(), body].concat()
    };
    let tag = if how & 0x80 == 0 { "ETag: \"v1\"\r\n" } else { "ETag: \"v2\"\r\n" };
    let whole = content.len();
    let cut = usize::from(said.first().copied().unwrap_or_default()).min(whole);
    let rest = from.filter(|from| *from < whole);
    let range = |first: usize| {
        format!("{tag}Content-Range: bytes {first}-{}/{whole}\r\n", whole.saturating_sub(1))
    };
    match (how & 7, rest) {
        (0, _) | (2, None) => with("200 OK", whole, tag, content),
        (1, _) => with("200 OK", whole, tag, &content[..cut]),
        (2, Some(from)) => {
            with("206 Partial Content", whole - from, &range(from), &content[from..])
        }
        // A part of the rest, and a rest of other bytes.
        (3, Some(from)) => {
            with("206 Partial Content", whole - from, &range(from), &content[from..cut.max(from)])
        }
        (3 | 4, _) => with("206 Partial Content", said.len(), &range(cut), said),
        (5, _) => with("416 Range Not Satisfiable", 0, tag, b""),
        (6, _) => with("200 OK", said.len(), tag, said),
        _ => said.to_vec(),
    }
}
