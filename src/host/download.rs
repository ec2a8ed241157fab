//! One HTTP answer, read so that nothing can hold up whoever waits for it.
//!
//! The request runs on a thread of its own: name resolution, connecting and the TLS handshake block, each for as
//! long as the system likes, and only the reading of a body can be broken off from outside. The caller waits for a
//! channel instead, looks around every [`LOOK`], and leaves when it wants to; the thread then finds its socket
//! shut down, or its timeout over, and ends by itself.
//!
//! The proxy is the environment's (`https_proxy`, `no_proxy`, …), certificates are judged by the system's store.

use std::{
    io::Read,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use ureq::{
    Agent, ResponseExt,
    http::header,
    tls::{RootCerts, TlsConfig},
};

use crate::plan::image::Headers;

/// How often the caller is asked whether to go on while nothing comes.
pub const LOOK: Duration = Duration::from_millis(100);

/// How much is read at a time.
const CHUNK: usize = 256 << 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// An http or https address.
    pub url: String,
    /// From this byte on, if the file is still the one of this validator.
    pub resume: Option<(u64, String)>,
    /// Whether a redirect from https to http is refused.
    pub stay_encrypted: bool,
    /// How long nothing may come before the connection is given up.
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
    body: Body,
}

struct Body {
    agent: Agent,
    chunks: Receiver<Said>,
    silence: Duration,
    ended: bool,
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

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller said so.
    #[error("it was called off")]
    CalledOff,
    /// Nothing came for that long.
    #[error("no byte came for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The certificate, or another part of TLS.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// TLS, but not the certificate.
    #[error("no encrypted connection comes about: {0}")]
    Tls(String),
    /// No such host.
    #[error("the host's name is not known")]
    NoHost,
    /// The address cannot be used.
    #[error("{0}")]
    Address(String),
    /// The connection failed or broke off.
    #[error("{0}")]
    Broken(String),
}

impl Error {
    /// Trying again may help.
    pub const fn passes(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::NoHost | Self::Broken(_))
    }

    /// The host, its network or the server is at fault; a certificate is refused as well where the clock is wrong.
    pub const fn is_the_hosts(&self) -> bool {
        !matches!(self, Self::CalledOff | Self::Address(_))
    }

    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Certificate(_) => Some(
                "check the host's clock and the address; a certificate authority of your own belongs in the \
                 system's store (`update-ca-certificates`), or in the file that `SSL_CERT_FILE` names"
                    .into(),
            ),
            Self::NoHost => Some("check the address, and `resolvectl query` for the host".into()),
            _ => None,
        }
    }
}

fn explained(error: ureq::Error, silence: Duration) -> Error {
    use ureq::Error as E;
    match error {
        E::HostNotFound => Error::NoHost,
        E::Timeout(_) => Error::Silent(silence),
        E::Rustls(e) => Error::Tls(e.to_string()),
        E::Tls(e) => Error::Tls(e.into()),
        E::Io(e) => match e.to_string() {
            text if text.contains("certificate") => {
                Error::Certificate(text.trim_start_matches("invalid peer certificate: ").to_owned())
            }
            text if e.kind() == std::io::ErrorKind::InvalidData => Error::Tls(text),
            _ if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Error::Broken("the connection broke off".into())
            }
            text => Error::Broken(text),
        },
        E::RequireHttpsOnly(to) => {
            Error::Address(format!("it leads to `{to}`, which is not https"))
        }
        E::TooManyRedirects => Error::Address("it leads from redirect to redirect".into()),
        E::BadUri(e) => Error::Address(format!("the address cannot be used: {e}")),
        E::Http(e) => Error::Address(format!("the address cannot be used: {e}")),
        E::InvalidProxyUrl => Error::Address("the environment names a proxy that is no URL".into()),
        other => Error::Broken(other.to_string()),
    }
}

/// Asks, and waits for the head of the answer. `goes_on` is asked every [`LOOK`].
///
/// # Errors
/// There is no answer. A status that tells of a failure is an answer.
pub fn get(request: &Request, goes_on: &mut dyn FnMut() -> bool) -> Result<Answer, Error> {
    let silence = request.silence;
    let agent: Agent = Agent::config_builder()
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
        .max_idle_connections(0)
        .input_buffer_size(CHUNK)
        .build()
        .into();
    let (say, chunks) = sync_channel(16);
    let (asked, theirs) = (request.clone(), agent.clone());
    std::thread::Builder::new()
        .name("download".into())
        .spawn(move || ask(&theirs, &asked, &say))
        .map_err(|e| Error::Broken(format!("the kernel gives no thread: {e}")))?;
    let mut body = Body { agent, chunks, silence, ended: false };
    match body.wait(goes_on)? {
        Said::Head(head) => {
            let Head { status, length, content_range, headers, url } = *head;
            Ok(Answer { status, length, content_range, headers, url, body })
        }
        Said::Failed(e) => Err(explained(e, silence)),
        Said::Chunk(_) | Said::End => Err(Error::Broken("the answer has no head".into())),
    }
}

impl Answer {
    /// The next bytes, `None` at the end. `goes_on` is asked every [`LOOK`].
    ///
    /// # Errors
    /// The connection broke off or fell silent, or `goes_on` said no.
    pub fn next(&mut self, goes_on: &mut dyn FnMut() -> bool) -> Result<Option<Vec<u8>>, Error> {
        if self.body.ended {
            return Ok(None);
        }
        match self.body.wait(goes_on)? {
            Said::Chunk(bytes) => Ok(Some(bytes)),
            Said::Failed(e) => Err(explained(e, self.body.silence)),
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
        loop {
            if !goes_on() {
                return Err(Error::CalledOff);
            }
            match self.chunks.recv_timeout(LOOK) {
                Ok(said) => return Ok(said),
                Err(RecvTimeoutError::Timeout) if since.elapsed() < self.silence => {}
                Err(RecvTimeoutError::Timeout) => return Err(Error::Silent(self.silence)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Broken("the connection was given up".into()));
                }
            }
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
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
