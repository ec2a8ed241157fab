//! Any bytes as what an HTTP server answers: reading them ends, no byte is made up, an answer that was cut off is told from a whole one, and
//! what a range, a validator or a name means is what RFC 9110 says.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{Shutdown, TcpListener},
    time::Duration,
};

use qvm::{
    cli::{exit::Failure, table::Screen},
    image::{
        download::{Error, Request, get},
        reference::{Headers, content_range, file_name, strong_validator, without_password},
    },
    spec::Origin,
    value::Explain,
};

/// How long no byte may come; the server closes behind its bytes, so that no call has to wait for it.
const SILENCE: Duration = Duration::from_secs(5);

thread_local! {
    static SERVER: RefCell<TcpListener> = RefCell::new(TcpListener::bind("127.0.0.1:0").expect("a port"));
}

/// The first byte chooses: a header's value, or an answer.
pub fn check(bytes: &[u8]) {
    let Some((&choice, rest)) = bytes.split_first() else { return };
    if choice & 1 == 0 {
        return header(&String::from_utf8_lossy(rest));
    }
    // A redirect would lead out of this process.
    let lower = rest.to_ascii_lowercase();
    if !lower.windows(8).any(|part| part == b"location") {
        SERVER.with_borrow(|server| answer(server, rest, choice & 2 == 2));
    }
}

fn header(text: &str) {
    if let Some((first, total)) = content_range(text) {
        assert!(total.is_none_or(|total| first < total), "{text:?}");
    }
    let mut lines = text.split('\n').map(|line| Some(line.to_owned()));
    let mut next = || lines.next().flatten();
    let headers = Headers { etag: next(), last_modified: next(), date: next() };
    if let Some(validator) = strong_validator(&headers) {
        assert!(!validator.starts_with("W/"), "{validator}");
        let is = |text: &Option<String>| text.as_deref().map(str::trim) == Some(validator.trim());
        assert!(is(&headers.etag) || is(&headers.last_modified), "made up: {validator}");
    }
    let bare = without_password(text);
    assert_eq!(without_password(&bare), bare, "more than one password");
    assert!(text.ends_with(bare.rsplit("://").next().unwrap_or_default()), "{bare}");
    if let Some(name) = file_name(&Origin::Http(text.to_owned())) {
        assert!(!name.is_empty());
    }
}

fn answer(server: &TcpListener, bytes: &[u8], resume: bool) {
    let address = server.local_addr().expect("an address");
    let request = Request {
        url: format!("http://{address}/x"),
        resume: resume.then(|| (5, "\"v\"".to_owned())),
        stay_encrypted: false,
        silence: SILENCE,
    };
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((mut stream, _)) = server.accept() else { return };
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked);
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            // A client that has heard enough closes.
            let _ = stream.read(&mut asked);
        });
        match read(&request, bytes.len()) {
            Ok(()) => {}
            Err(error) => {
                let failure = Failure::from_error(&error).hint(error.hint());
                super::is_tame(&failure.shown(Screen::default()));
            }
        }
    });
    assert!(begun.elapsed() < SILENCE, "waited for a server that has closed");
}

fn read(request: &Request, said: usize) -> Result<(), Error> {
    let mut answer = get(request, &mut || true)?;
    let mut read = 0;
    while let Some(chunk) = answer.next(&mut || true)? {
        read += chunk.len();
        assert!(read <= said, "{read} bytes of {said}");
    }
    // It ended well.
    let length = answer.length.filter(|_| answer.status != 204 && answer.status != 304);
    assert!(
        length.is_none_or(|length| length == read as u64),
        "{read} of {length:?} bytes are all"
    );
    Ok(())
}
