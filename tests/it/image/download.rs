//! Downloads from servers that never send the complete file, and through proxies.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::http::{Asked, Reply, Server};
use qvm::{
    image::{
        self, Cached, Error, Patience, Purpose, Tools, download,
        fetch::{self, Received},
        qemu_img::QemuImg,
    },
    spec::{Checksum, Image, Origin},
    sys::{
        digest::of_text,
        progress::{Cancel, Quiet},
    },
    value::{Algorithm, Digest},
};

const ATTEMPTS: u32 = 4;

/// A text of this length.
fn content(length: usize) -> String {
    "0123456789abcdef".chars().cycle().take(length).collect()
}

fn ensure(url: String, content: &str, dir: &Path) -> Result<Cached, Error> {
    let patience = Patience {
        silence: Duration::from_millis(600),
        attempts: ATTEMPTS,
        pause: Duration::from_millis(1),
    };
    let qemu_img = QemuImg::new("qemu-img");
    let tools = Tools { qemu_img, patience, now: jiff::Timestamp::UNIX_EPOCH };
    let digest = Digest::new(Algorithm::Sha256, &of_text(content)).unwrap();
    let image = Image { origin: Origin::Http(url), checksum: Checksum::Digest(digest) };
    image::ensure(&image, dir, Purpose::Copy, &tools, &mut Quiet, &Cancel::default())
}

/// Returns the error of an incomplete download of `length` bytes, and the number of requests.
fn gives_up(
    length: usize,
    answer: impl Fn(&Asked, &mut Reply, &[u8]) + Send + Sync + 'static,
) -> (fetch::Error, usize) {
    let dir = tempfile::tempdir().unwrap();
    let content = content(length);
    let bytes = content.clone().into_bytes();
    let server = Server::start(move |asked, reply| answer(asked, reply, &bytes));
    match ensure(server.url("x.raw"), &content, dir.path()).unwrap_err() {
        Error::Fetch(error) => (error, server.asked().len()),
        error => panic!("{error:?}"),
    }
}

fn received(error: &fetch::Error) -> Received {
    match error {
        fetch::Error::Download { received, .. } | fetch::Error::Status { received, .. } => {
            *received
        }
        error => panic!("{error:?}"),
    }
}

/// The first half with the total length; nothing from there on.
fn half(asked: &Asked, reply: &mut Reply, bytes: &[u8]) {
    let half = bytes.len() / 2;
    match asked.from {
        Some(from) if from >= half => {
            let has = format!("Content-Range: bytes */{half}");
            reply.head(416, &[has, "Content-Length: 0".into()]);
        }
        _ => reply.cut(asked, bytes, "\"x\"", half),
    }
}

#[test]
fn half_object_is_given_up() {
    let (error, requests) = gives_up(300_000, half);
    assert_eq!(received(&error), Received { bytes: 150_000, total: Some(300_000) });
    // Each attempt without progress counts, and the first had progress.
    assert_eq!(requests, ATTEMPTS as usize);
    assert!(error.to_string().ends_with(", received 150000 of 300000 bytes"), "{error}");
}

#[test]
fn restarting_servers_are_given_up() {
    type Answer = fn(&Asked, &mut Reply, &[u8]);
    let answers: [(&str, Answer); 7] = [
        ("another entity tag each time", |asked, reply, bytes| {
            let whole = Asked { from: None, ..asked.clone() };
            reply.cut(&whole, bytes, &format!("\"{}\"", asked.nth), 1000);
        }),
        ("200 to every range", |asked, reply, bytes| {
            let whole = Asked { from: None, ..asked.clone() };
            reply.cut(&whole, bytes, "\"x\"", 1000);
        }),
        ("another range than asked for", |asked, reply, bytes| match asked.from {
            None => reply.cut(asked, bytes, "\"x\"", 1000),
            Some(_) => {
                let range = "Content-Range: bytes 500-9999/10000".to_owned();
                reply.head(206, &[range, "Content-Length: 9500".into()]);
                reply.send(&bytes[500..]);
            }
        }),
        ("no range in an answer 206", |asked, reply, bytes| match asked.from {
            None => reply.cut(asked, bytes, "\"x\"", 1000),
            Some(from) => {
                reply.head(206, &[format!("Content-Length: {}", bytes.len() - from)]);
                reply.send(&bytes[from..]);
            }
        }),
        ("a file that shrinks", |asked, reply, bytes| match asked.from {
            None => reply.cut(asked, bytes, "\"x\"", 1000),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-4999/5000");
                reply.head(206, &[range, format!("Content-Length: {}", 5000 - from)]);
                reply.send(&bytes[from..5000]);
            }
        }),
        ("more than announced", |asked, reply, bytes| match asked.from {
            None => reply.cut(asked, bytes, "\"x\"", 1000),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-9999/10000");
                reply.head(206, &[range, "Content-Length: 12000".into()]);
                reply.send(&[bytes, bytes].concat()[..12_000]);
            }
        }),
        ("chunks without an end", |asked, reply, bytes| {
            reply.head(200, &["Transfer-Encoding: chunked".into(), "ETag: \"x\"".into()]);
            reply.send(b"3e8\r\n");
            reply.send(&bytes[..1000]);
            reply.send(format!("\r\n{}", asked.nth).as_bytes());
        }),
    ];
    for (what, answer) in answers {
        let (error, requests) = gives_up(10_000, answer);
        assert!(requests <= 2 * ATTEMPTS as usize, "{what}: {requests} requests");
        assert!(received(&error).bytes >= 1000, "{what}: {error}");
    }
}

#[test]
fn slow_downloads_are_given_up() {
    let (error, requests) = gives_up(10_000, |asked, reply, bytes| {
        let from = asked.from.unwrap_or(0);
        let range = format!("Content-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        let length = format!("Content-Length: {}", bytes.len() - from);
        let status = if from == 0 { 200 } else { 206 };
        reply.head(status, &[range, length, "ETag: \"x\"".into()]);
        reply.trickle(&bytes[from..], Duration::from_millis(30));
    });
    // Each attempt gets a few more bytes, which do not count as progress.
    assert_eq!(requests, ATTEMPTS as usize);
    let fetch::Error::Download { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, download::Error::TooSlow { .. }), "{source:?}");
}

#[test]
fn attempts_with_progress_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(100_000);
    let bytes = content.clone().into_bytes();
    let server = Server::start(move |asked, reply| reply.cut(asked, &bytes, "\"x\"", 9_000));
    let cached = ensure(server.url("x.raw"), &content, dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(cached.path).unwrap(), content);
    assert_eq!(server.asked().len(), 12);
}

#[test]
fn chunked_download_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let content = content(100_000);
    let bytes = content.clone().into_bytes();
    let server = Server::start(move |asked, reply| match asked.from {
        Some(_) => reply.well(asked, &bytes, "\"x\""),
        None => {
            reply.head(200, &["Transfer-Encoding: chunked".into(), "ETag: \"x\"".into()]);
            reply.send(b"3e8\r\n");
            reply.send(&bytes[..1000]);
            reply.send(b"\r\n");
        }
    });
    let cached = ensure(server.url("x.raw"), &content, dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(cached.path).unwrap(), content);
    assert_eq!(server.asked()[1].from, Some(1000));
}

/// `qvm image pull` with only these proxy variables.
fn pull(url: &str, variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvm"));
    command.args(["image", "pull", url, "--insecure-no-checksum"]).stdin(Stdio::null());
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    for (variable, place) in
        [("QVM_CONFIG_DIR", "c"), ("QVM_STATE_DIR", "s"), ("QVM_RUNTIME_DIR", "r")]
    {
        command.env(variable, dir.path().join(place));
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn proxy_gets_whole_address() {
    let proxy = Server::of(content(5000).into_bytes());
    let address = proxy.url("").replace("http://", "http://us%20er:pa%3Ass@");
    let pulled = pull("http://images.example/a/x.raw?y=1", &[("http_proxy", &address)]);
    assert!(pulled.status.success(), "{}", said(&pulled));
    let asked = proxy.asked();
    assert_eq!(asked[0].method, "GET");
    assert_eq!(asked[0].path, "http://images.example/a/x.raw?y=1");
    assert_eq!(asked[0].host.as_deref(), Some("images.example"));
    assert_eq!(asked[0].proxy_authorization.as_deref(), Some("Basic dXMgZXI6cGE6c3M="));
}

#[test]
fn redirect_goes_through_proxy_too() {
    let proxy = Server::start(|asked, reply| match asked.path.as_str() {
        "http://images.example:8080/x.raw" => {
            reply.head(
                302,
                &["Location: http://mirror.example/y.raw".into(), "Content-Length: 0".into()],
            );
        }
        _ => reply.well(asked, content(5000).as_bytes(), "\"x\""),
    });
    let pulled = pull("http://images.example:8080/x.raw", &[("all_proxy", &proxy.url(""))]);
    assert!(pulled.status.success(), "{}", said(&pulled));
    assert_eq!(proxy.asked()[1].path, "http://mirror.example/y.raw");
}

#[test]
fn no_proxy_with_network_connects_directly() {
    let server = Server::of(content(5000).into_bytes());
    let nobody = { Server::of(vec![]).url("") };
    let variables = [("http_proxy", &*nobody), ("no_proxy", "localhost,127.0.0.0/8")];
    let pulled = pull(&server.url("y.raw"), &variables);
    assert!(pulled.status.success(), "{}", said(&pulled));
    assert_eq!(server.asked()[0].path, "/y.raw");
}

#[test]
fn refused_tunnel_names_proxy() {
    for (status, requests) in [(403, 1), (407, 1)] {
        let proxy = Server::start(move |_, reply| reply.head(status, &[]));
        let address = proxy.url("").replace("http://", "http://user:secret@");
        let pulled = pull("https://images.example/x.raw", &[("https_proxy", &address)]);
        let text = said(&pulled);
        assert!(!pulled.status.success() && text.contains(&status.to_string()), "{text}");
        assert!(text.contains(proxy.url("").trim_end_matches('/')), "{text}");
        assert!(text.contains("`https_proxy`") && !text.contains("secret"), "{text}");
        assert_eq!(proxy.asked().len(), requests);
        let asked = &proxy.asked()[0];
        assert_eq!((&*asked.method, &*asked.path), ("CONNECT", "images.example:443"));
        assert!(asked.proxy_authorization.is_some());
    }
}

#[test]
fn proxy_password_has_a_hint() {
    let proxy = Server::start(move |_, reply| reply.head(407, &["Content-Length: 0".into()]));
    let text = said(&pull("http://images.example/x.raw", &[("http_proxy", &proxy.url(""))]));
    assert!(text.contains("USER:PASSWORD@") && text.contains("`http_proxy`"), "{text}");
}

#[test]
fn unusable_proxy_prevents_connection() {
    let server = Server::of(content(5000).into_bytes());
    for (variable, value) in
        [("all_proxy", "socks5://127.0.0.1:1080"), ("http_proxy", "http://a b")]
    {
        let text = said(&pull(&server.url("x.raw"), &[(variable, value)]));
        assert!(text.contains(&format!("`{variable}`")), "{text}");
    }
    assert_eq!(server.asked().len(), 0);
}
