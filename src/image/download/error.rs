//! Why there is no answer to a request, or no more of it.

use std::time::Duration;

use super::proxy::{self, Proxy};
use super::route::TunnelRefused;

use crate::value::Explain;

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller said so.
    #[error("it was called off")]
    CalledOff,
    /// Nothing came for that long.
    #[error("no byte came for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// Too little came.
    #[error("only {bytes} bytes came in {} s", .time.as_secs_f32())]
    TooSlow {
        /// How many.
        bytes: usize,
        /// In this time of waiting.
        time: Duration,
    },
    /// A redirect leads from https to http.
    #[error("the server redirects to `{0}`, which is not https")]
    Unencrypted(String),
    /// The environment names a proxy that cannot be used.
    #[error(transparent)]
    NoProxy(#[from] proxy::Error),
    /// The proxy does not connect to the server: the status of its answer.
    #[error("the proxy refuses the connection with status {0}")]
    ProxyStatus(u16),
    /// One of the others, of a request that goes through a proxy.
    #[error("the request went through the proxy {proxy}")]
    Through {
        /// Which.
        proxy: Box<Proxy>,
        /// Why not.
        source: Box<Error>,
    },
    /// The certificate, or another part of TLS.
    #[error("the server's certificate is not accepted: {0}")]
    Certificate(String),
    /// TLS, but not the certificate.
    #[error("TLS handshake failed: {0}")]
    Tls(String),
    /// This host has no certificates of authorities, so no server's can be verified.
    #[error("no certificate authority is installed on this host")]
    NoAuthorities,
    /// No such host.
    #[error("cannot resolve the host name")]
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

    /// Bytes came, but too few to go on with.
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

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Certificate(_) => Some(
                "check the host's clock and the address; add a certificate authority of your own to \
                 the system's store (`update-ca-certificates`), or to the file that `SSL_CERT_FILE` \
                 names"
                    .into(),
            ),
            Self::NoAuthorities => Some(
                "install the package `ca-certificates`, or set `SSL_CERT_FILE` to a file of \
                 certificates"
                    .into(),
            ),
            Self::NoHost => Some("check the address, and `resolvectl query` for the host".into()),
            Self::NoProxy(proxy::Error::Scheme { .. }) => {
                Some("use a proxy with an address `http://HOST:PORT` or `https://HOST:PORT`".into())
            }
            Self::NoProxy(proxy::Error::Address { .. }) => {
                Some("write `http://HOST:PORT`; escape special characters of a password as `%XX`".into())
            }
            Self::Through { proxy, source } => match &**source {
                Self::ProxyStatus(407) => Some(format!(
                    "write the proxy's user and password into `{}`: \
                     `http://USER:PASSWORD@HOST:PORT`",
                    proxy.variable
                )),
                Self::NoHost | Self::Broken(_) | Self::Silent(_) | Self::ProxyStatus(_) => {
                    Some(format!(
                        "check `{}`, or list the server in `no_proxy`; a systemd unit has its \
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
            Self::Through { .. } | Self::CalledOff | Self::Address(_) | Self::Unencrypted(_)
        )
    }
}

/// What ureq's error means.
pub(crate) fn explained(error: ureq::Error, silence: Duration) -> Error {
    use ureq::Error as E;
    match error {
        E::HostNotFound => Error::NoHost,
        E::Timeout(_) => Error::Silent(silence),
        E::Rustls(e) => match e.to_string() {
            // Of rustls-platform-verifier, which has no error of its own for an empty store.
            text if text.contains("No CA certificates") => Error::NoAuthorities,
            text => Error::Tls(text),
        },
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
        E::RequireHttpsOnly(to) => Error::Unencrypted(to),
        E::TooManyRedirects => Error::Address("it leads from redirect to redirect".into()),
        E::BadUri(e) => Error::Address(format!("the address cannot be used: {e}")),
        E::Http(e) => Error::Address(format!("the address cannot be used: {e}")),
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
