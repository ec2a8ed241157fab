//! The errors of HTTP requests.

use std::time::Duration;

use super::proxy::{self, Proxy};
use super::route::TunnelRefused;

use crate::value::{ErrorCode, Explain, foreign_error};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller canceled the request.
    #[error("canceled")]
    Canceled,
    /// No data was received for this time.
    #[error("no data received for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// Too little data was received.
    #[error("only {bytes} bytes received in {} s", .time.as_secs_f32())]
    TooSlow {
        /// The number of bytes.
        bytes: usize,
        /// The time waited.
        time: Duration,
    },
    /// A redirect from https to http.
    #[error("the server redirects to `{0}`, which is not https")]
    Unencrypted(String),
    /// The proxy in the environment is not usable.
    #[error(transparent)]
    NoProxy(#[from] proxy::Error),
    /// The proxy refuses the connection with this status.
    #[error("the proxy refuses the connection with status {0}")]
    ProxyStatus(u16),
    /// The error of a request through a proxy.
    #[error("request through the proxy {proxy}")]
    Through {
        /// The proxy.
        proxy: Box<Proxy>,
        /// The cause.
        source: Box<Error>,
    },
    /// The server's certificate is not valid.
    #[error("the server's certificate is not valid: {0}")]
    Certificate(String),
    /// A TLS error other than the certificate.
    #[error("TLS handshake failed: {0}")]
    Tls(String),
    /// The host has no CA certificates.
    #[error("no certificate authority is installed on this host")]
    NoAuthorities,
    /// The host name cannot be resolved.
    #[error("cannot resolve the host name")]
    NoHost,
    /// The URL is not usable.
    #[error("{0}")]
    Address(String),
    /// The connection failed.
    #[error("{0}")]
    Broken(String),
}

impl Error {
    /// Returns true if a retry may succeed.
    pub fn passes(&self) -> bool {
        match self {
            Self::Through { source, .. } => source.passes(),
            Self::ProxyStatus(status) => matches!(status, 408 | 425 | 429 | 500..600),
            _ => matches!(
                self,
                Self::Silent(_) | Self::TooSlow { .. } | Self::NoHost | Self::Broken(_)
            ),
        }
    }

    /// Returns true if the transfer was too slow.
    pub fn is_slowness(&self) -> bool {
        match self {
            Self::Through { source, .. } => source.is_slowness(),
            _ => matches!(self, Self::TooSlow { .. }),
        }
    }
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Through { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Canceled => ErrorCode::Canceled,
            Self::Silent(..) | Self::TooSlow { .. } => ErrorCode::DownloadStalled,
            Self::Unencrypted(..) => ErrorCode::DownloadInsecure,
            Self::NoProxy(..) => ErrorCode::ProxyInvalid,
            Self::ProxyStatus(..) => ErrorCode::ProxyRefused,
            Self::Certificate(..) => ErrorCode::CertificateInvalid,
            Self::Tls(..) => ErrorCode::TlsFailed,
            Self::NoAuthorities => ErrorCode::NoCertificateAuthorities,
            Self::NoHost => ErrorCode::HostNameUnresolved,
            Self::Address(..) => ErrorCode::UrlInvalid,
            Self::Broken(..) => ErrorCode::ConnectionFailed,
            Self::Through { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Certificate(_) => Some(
                "check the clock of this host and the URL; add your own certificate authority to \
                 the system's store (`update-ca-certificates`), or to the file in `SSL_CERT_FILE`"
                    .into(),
            ),
            Self::NoAuthorities => Some(
                "install the package `ca-certificates`, or set `SSL_CERT_FILE` to a file of \
                 certificates"
                    .into(),
            ),
            Self::NoHost => Some(
                "check the URL, and resolve the host with `resolvectl \
                query`"
                    .into(),
            ),
            Self::NoProxy(proxy::Error::Scheme { .. }) => {
                Some("use a proxy with a URL `http://HOST:PORT` or `https://HOST:PORT`".into())
            }
            Self::NoProxy(proxy::Error::Address { .. }) => Some(
                "write `http://HOST:PORT`; escape special characters of a password as \
                    `%XX`"
                    .into(),
            ),
            Self::Through { proxy, source } => match &**source {
                Self::ProxyStatus(407) => Some(format!(
                    "write the proxy's user and password into `{}`: \
                     `http://USER:PASSWORD@HOST:PORT`",
                    proxy.variable
                )),
                Self::NoHost | Self::Broken(_) | Self::Silent(_) | Self::ProxyStatus(_) => {
                    Some(format!(
                        "check `{}`, or list the server in `no_proxy`; a systemd unit gets its \
                         environment from `Environment=` lines, not from the shell",
                        proxy.variable
                    ))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        !matches!(
            self,
            Self::Through { .. } | Self::Canceled | Self::Address(_) | Self::Unencrypted(_)
        )
    }
}

/// Converts an error of ureq.
pub(crate) fn explained(error: ureq::Error, silence: Duration) -> Error {
    use ureq::Error as E;
    match error {
        E::HostNotFound => Error::NoHost,
        E::Timeout(_) => Error::Silent(silence),
        E::Rustls(e) => match e.to_string() {
            text if foreign_error::is_no_authorities(&text) => Error::NoAuthorities,
            text => Error::Tls(text),
        },
        E::Tls(e) => Error::Tls(e.into()),
        E::Io(e) => {
            let text = e.to_string();
            match (foreign_error::certificate_problem(&text), e.kind()) {
                (Some(problem), _) => Error::Certificate(problem.to_owned()),
                (None, std::io::ErrorKind::InvalidData) => Error::Tls(text),
                (None, std::io::ErrorKind::UnexpectedEof) => {
                    Error::Broken("the connection was closed early".into())
                }
                (None, _) => Error::Broken(text),
            }
        }
        E::RequireHttpsOnly(to) => Error::Unencrypted(to),
        E::TooManyRedirects => Error::Address("too many redirects".into()),
        E::BadUri(e) => Error::Address(format!("the URL is not usable: {e}")),
        E::Http(e) => Error::Address(format!("the URL is not usable: {e}")),
        E::ConnectProxyFailed(text) => Error::Broken(text),
        E::Other(other) => match other.downcast::<TunnelRefused>() {
            Ok(refused) => Error::ProxyStatus(refused.0),
            Err(other) => match other.downcast::<proxy::Error>() {
                Ok(error) => Error::NoProxy(*error),
                Err(other) => Error::Broken(other.to_string()),
            },
        },
        other => Error::Broken(other.to_string()),
    }
}
