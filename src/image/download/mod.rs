//! One HTTP answer, read so that nothing can hold up whoever waits for it.
//!
//! The request runs on a thread of its own: name resolution, connecting and the TLS handshake
//! block, each for as long as the system likes, and only the reading of a body can be broken off
//! from outside. The caller waits for a channel instead, looks around every [`LOOK`], and leaves
//! when it wants to; the thread then finds its socket shut down, or its timeout over, and ends by
//! itself.
//!
//! The proxy is the environment's ([`crate::plan::proxy`]), certificates are judged by the system's
//! store.

pub(crate) mod connect;
pub(crate) mod error;
pub mod proxy;
pub(crate) mod route;

use std::{
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

pub use self::error::Error;
use self::error::explained;
use self::route::Route;

use ureq::{
    Agent, ResponseExt,
    http::header,
    tls::{RootCerts, TlsConfig},
    unversioned::transport::RustlsConnector,
};

use self::proxy::{Proxies, Proxy};
use super::reference::Headers;

/// How often the caller is asked whether to go on while nothing comes.
pub const LOOK: Duration = Duration::from_millis(100);

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

/// The longest that connecting to a server, or to its proxy, may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// The fewest bytes per second, over a period of [`Request::silence`], that count as progress.
const LEAST_RATE: f64 = 1024.0;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// An http or https address.
    pub url: String,
    /// From this byte on, if the file is still the one of this validator.
    pub resume: Option<(u64, String)>,
    /// Whether a redirect from https to http is refused.
    pub stay_encrypted: bool,
    /// How long nothing may come before the connection is given up. Over as long, fewer than 1024
    /// bytes per second are given up as well: a server that sends a byte a minute would hold up a
    /// start for ever.
    pub silence: Duration,
}

/// The beginning of an answer; the rest comes by [`Answer::next`].
pub struct Answer {
    /// 200, 206, 404, ….
    pub status: u16,
    /// How many bytes follow, where the server says so.
    pub length: Option<u64>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// What a later request may be made with.
    pub headers: Headers,
    /// Where redirects led to.
    pub url: String,
    /// The proxy that the answer came through.
    pub proxy: Option<Box<Proxy>>,
    body: Body,
}

struct Body {
    agent: Agent,
    route: Route,
    chunks: Receiver<Said>,
    silence: Duration,
    ended: bool,
    /// How long was waited since the rate was last looked at, and how many bytes came.
    waited: Duration,
    came: usize,
}

enum Said {
    Head(Box<Head>),
    Chunk(Vec<u8>),
    End,
    Failed(ureq::Error),
}

struct Head {
    status: u16,
    length: Option<u64>,
    content_range: Option<String>,
    headers: Headers,
    url: String,
}

/// Asks, and waits for the head of the answer. `goes_on` is asked every [`LOOK`].
///
/// # Errors
/// There is no answer. A status that tells of a failure is an answer.
pub fn get(request: &Request, goes_on: &mut dyn FnMut() -> bool) -> Result<Answer, Error> {
    let proxies = Proxies::from_variables(|name| std::env::var(name).ok());
    get_through(proxies, request, goes_on)
}

fn get_through(
    proxies: Proxies,
    request: &Request,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Answer, Error> {
    let silence = request.silence;
    let route = Route {
        proxies: Arc::new(proxies),
        limit: silence.min(CONNECT_LIMIT),
        abandoned: Arc::new(AtomicBool::new(false)),
        through: Arc::new(Mutex::new(None)),
        tls: Arc::new(RustlsConnector::default()),
    };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(request.stay_encrypted)
        .timeout_resolve(Some(silence))
        .timeout_connect(Some(silence))
        .timeout_per_read(Some(silence))
        .timeout_per_write(Some(silence))
        .user_agent(concat!("qvm/", env!("CARGO_PKG_VERSION")))
        // The bytes as they lie there: a transfer encoding would change what the digest is of.
        .accept_encoding("identity")
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        // `Route` decides about proxies.
        .proxy(None)
        .max_idle_connections(0)
        .input_buffer_size(CHUNK)
        .build();
    let agent = Agent::with_parts(config, route.clone(), route.clone());
    let (say, chunks) = sync_channel(16);
    let (asked, theirs) = (request.clone(), agent.clone());
    std::thread::Builder::new()
        .name("download".into())
        .spawn(move || ask(&theirs, &asked, &say))
        .map_err(|e| Error::Broken(format!("the kernel gives no thread: {e}")))?;
    let (waited, came) = (Duration::ZERO, 0);
    let mut body = Body { agent, route, chunks, silence, ended: false, waited, came };
    match body.wait(goes_on)? {
        Said::Head(head) => {
            let Head { status, length, content_range, headers, url } = *head;
            let proxy = body.proxy();
            Ok(Answer { status, length, content_range, headers, url, proxy, body })
        }
        Said::Failed(e) => Err(body.through(explained(e, silence))),
        Said::Chunk(_) | Said::End => Err(Error::Broken("the answer has no head".into())),
    }
}

impl Answer {
    /// The next bytes, `None` at the end. `goes_on` is asked every [`LOOK`].
    ///
    /// # Errors
    /// The connection broke off, fell silent or is too slow, or `goes_on` said no.
    pub fn next(&mut self, goes_on: &mut dyn FnMut() -> bool) -> Result<Option<Vec<u8>>, Error> {
        if self.body.ended {
            return Ok(None);
        }
        match self.body.wait(goes_on)? {
            Said::Chunk(bytes) => {
                self.body.keeps_pace(bytes.len())?;
                Ok(Some(bytes))
            }
            Said::Failed(e) => Err(self.body.through(explained(e, self.body.silence))),
            Said::End | Said::Head(_) => {
                self.body.ended = true;
                Ok(None)
            }
        }
    }
}

impl Body {
    fn wait(&mut self, goes_on: &mut dyn FnMut() -> bool) -> Result<Said, Error> {
        let since = Instant::now();
        let said = loop {
            if !goes_on() {
                return Err(Error::CalledOff);
            }
            match self.chunks.recv_timeout(LOOK) {
                Ok(said) => break said,
                Err(RecvTimeoutError::Timeout) if since.elapsed() < self.silence => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.through(Error::Silent(self.silence)));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.through(Error::Broken("the connection was given up".into())));
                }
            }
        };
        self.waited += since.elapsed();
        Ok(said)
    }

    /// Counts the bytes against the time that was waited for them; time in which the caller wrote
    /// them does not count.
    fn keeps_pace(&mut self, bytes: usize) -> Result<(), Error> {
        self.came += bytes;
        if self.waited < self.silence {
            return Ok(());
        }
        let (bytes, time) = (std::mem::take(&mut self.came), std::mem::take(&mut self.waited));
        if (bytes as f64) < LEAST_RATE * time.as_secs_f64() {
            return Err(self.through(Error::TooSlow { bytes, time }));
        }
        Ok(())
    }

    fn proxy(&self) -> Option<Box<Proxy>> {
        let through = self.route.through.lock().unwrap_or_else(PoisonError::into_inner);
        through.clone().map(Box::new)
    }

    /// The error, with the proxy where there is one.
    fn through(&self, error: Error) -> Error {
        match (self.proxy(), error) {
            (_, error @ (Error::CalledOff | Error::Unencrypted(_) | Error::NoProxy(_))) => error,
            (Some(proxy), error) => Error::Through { proxy, source: Box::new(error) },
            (None, error) => error,
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.route.abandoned.store(true, Ordering::Release);
        self.agent.clone().shutdown();
    }
}

/// The thread: the answer goes to whoever still listens.
fn ask(agent: &Agent, request: &Request, say: &SyncSender<Said>) {
    let mut call = agent.get(&request.url);
    if let Some((from, validator)) = &request.resume {
        call = call
            .header(header::RANGE, format!("bytes={from}-"))
            .header(header::IF_RANGE, validator.as_str());
    }
    let answer = match call.call() {
        Ok(answer) => answer,
        Err(e) => return drop(say.send(Said::Failed(e))),
    };
    let text = |name| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
    let head = Head {
        status: answer.status().as_u16(),
        length: answer.body().content_length(),
        content_range: text(header::CONTENT_RANGE),
        headers: Headers {
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
            date: text(header::DATE),
        },
        url: answer.get_uri().to_string(),
    };
    if say.send(Said::Head(Box::new(head))).is_err() {
        return;
    }
    let mut body = answer.into_body().into_reader();
    let mut buffer = vec![0; CHUNK];
    loop {
        // What came is passed on as it came: whoever resumes after a stall begins behind it.
        let said = match body.read(&mut buffer) {
            Ok(0) => Said::End,
            Ok(read) => Said::Chunk(buffer[..read].to_vec()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => Said::Failed(e.into()),
        };
        let last = !matches!(said, Said::Chunk(_));
        if say.send(said).is_err() || last {
            return;
        }
    }
}
