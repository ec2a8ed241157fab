//! HTTP requests that never block the caller.
//!
//! The request runs on its own thread: name resolution, connecting and the TLS handshake block
//! without a limit, and only the transfer of a body can be interrupted. The caller waits on a
//! channel, checks for cancellation every [`POLL_INTERVAL`], and can leave; the thread then finds
//! its socket closed, or times out, and ends.
//!
//! Proxies are configured in the environment ([`proxy`]); certificates are verified with the
//! system's store.

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

/// The interval of cancellation checks while no data arrives.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The read size in bytes.
const CHUNK: usize = 256 << 10;

/// The time limit for connecting to a server or its proxy.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// The minimum rate in bytes per second, over a period of [`Request::silence`].
const LEAST_RATE: f64 = 1024.0;

/// An HTTP request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The http or https URL.
    pub url: String,
    /// Resume from this byte if the file still has this validator.
    pub resume: Option<(u64, String)>,
    /// Refuse redirects from https to http.
    pub stay_encrypted: bool,
    /// The timeout without data. Fewer than 1024 bytes per second over this period also fail: a
    /// server that sends a byte a minute would delay a start forever.
    pub silence: Duration,
}

/// The header of a response; [`Answer::next`] returns the body.
pub struct Answer {
    /// 200, 206, 404, ….
    pub status: u16,
    /// The length of the body in bytes, if known.
    pub length: Option<u64>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// The headers for a later range request.
    pub headers: Headers,
    /// The URL after redirects.
    pub url: String,
    /// The proxy used.
    pub proxy: Option<Box<Proxy>>,
    body: Body,
}

struct Body {
    agent: Agent,
    route: Route,
    chunks: Receiver<Said>,
    silence: Duration,
    ended: bool,
    /// The time waited since the last rate check, and the bytes received.
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

/// Sends a request and waits for the response header. `goes_on` is called every [`POLL_INTERVAL`].
///
/// # Errors
/// No response. An error status is a response.
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
        // Unencoded: a content encoding would change the digest.
        .accept_encoding("identity")
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
        // `Route` selects the proxy.
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
        .map_err(|e| Error::Broken(format!("cannot start a thread: {e}")))?;
    let (waited, came) = (Duration::ZERO, 0);
    let mut body = Body { agent, route, chunks, silence, ended: false, waited, came };
    match body.wait(goes_on)? {
        Said::Head(head) => {
            let Head { status, length, content_range, headers, url } = *head;
            let proxy = body.proxy();
            Ok(Answer { status, length, content_range, headers, url, proxy, body })
        }
        Said::Failed(e) => Err(body.through(explained(e, silence))),
        Said::Chunk(_) | Said::End => Err(Error::Broken("the response has no header".into())),
    }
}

impl Answer {
    /// Returns the next bytes, `None` at the end. `goes_on` is called every [`POLL_INTERVAL`].
    ///
    /// # Errors
    /// The connection failed, timed out or is too slow, or `goes_on` returned false.
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
        let message = loop {
            if !goes_on() {
                return Err(Error::Canceled);
            }
            match self.chunks.recv_timeout(POLL_INTERVAL) {
                Ok(message) => break message,
                Err(RecvTimeoutError::Timeout) if since.elapsed() < self.silence => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.through(Error::Silent(self.silence)));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.through(Error::Broken("the connection was aborted".into())));
                }
            }
        };
        self.waited += since.elapsed();
        Ok(message)
    }

    /// Checks the rate against the time waited for data, without the time in which the caller wrote
    /// it.
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

    /// Adds the proxy to the error, if there is one.
    fn through(&self, error: Error) -> Error {
        match (self.proxy(), error) {
            (_, error @ (Error::Canceled | Error::Unencrypted(_) | Error::NoProxy(_))) => error,
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

/// The thread: sends the response while the receiver exists.
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
        // Data is passed on immediately, so that a resume after a stall begins after it.
        let message = match body.read(&mut buffer) {
            Ok(0) => Said::End,
            Ok(read) => Said::Chunk(buffer[..read].to_vec()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => Said::Failed(e.into()),
        };
        let last = !matches!(message, Said::Chunk(_));
        if say.send(message).is_err() || last {
            return;
        }
    }
}
