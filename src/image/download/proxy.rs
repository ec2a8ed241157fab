//! Selects the proxy of a request from the variables `http_proxy`, `https_proxy`, `all_proxy` and
//! `no_proxy`.
//!
//! The variables are not standardized. As in curl(1), lower-case names take precedence and an empty
//! value means unset; as in curl 7.86 and Go, `no_proxy` can contain networks.

use std::net::IpAddr;

use crate::image::reference::percent_decoded;
use crate::value::{shown, to_base64};

/// The proxy configuration of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http://`: the variable and its value.
    http: Option<(&'static str, String)>,
    /// For `https://`.
    https: Option<(&'static str, String)>,
    /// For both, if the scheme has none.
    all: Option<(&'static str, String)>,
    /// Hosts without a proxy.
    exceptions: Vec<Exception>,
}

/// A proxy from an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The variable.
    pub variable: &'static str,
    /// The connection to the proxy itself is encrypted: `https://`.
    pub encrypted: bool,
    /// The host: a name, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    /// The port, 1 to 65535.
    pub port: u16,
    /// The value of `Proxy-Authorization`, if the variable contains a user.
    pub authorization: Option<String>,
}

/// Why a variable is not a usable proxy. The value is shown without the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The value is not a URL.
    #[error("`{variable}` in the environment is not the URL of a proxy")]
    Address {
        /// The variable.
        variable: &'static str,
    },
    /// An unsupported kind of proxy, such as SOCKS.
    #[error("`{variable}` in the environment is a proxy of the unsupported kind \
        `{}`", shown(.scheme))]
    Scheme {
        /// The variable.
        variable: &'static str,
        /// The scheme of the proxy.
        scheme: String,
    },
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (from `{}`)", self.url(), self.variable)
    }
}

impl Proxy {
    /// Returns its URL without user and password.
    pub fn url(&self) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }

    fn read(variable: &'static str, value: &str) -> Result<Self, Error> {
        let wrong = || Error::Address { variable };
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        let encrypted = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(Error::Scheme { variable, scheme: scheme.to_owned() }),
        };
        // A password may contain an unescaped `/`; the last `@` ends it.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        let is_address = |bare: &str| bare.parse::<std::net::Ipv6Addr>().is_ok();
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let good =
            bracketed.map_or_else(|| !host.is_empty() && host.chars().all(is_name), is_address);
        if !good || port == Some(0) {
            return Err(wrong());
        }
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let both = [percent_decoded(name), b":".to_vec(), percent_decoded(password)].concat();
            format!("Basic {}", to_base64(&both))
        });
        let port = port.unwrap_or(if encrypted { 443 } else { 80 });
        Ok(Self { variable, encrypted, host: host.to_owned(), port, authorization })
    }
}

impl Proxies {
    /// Parses the variables; `value` returns the value of one of them.
    pub fn from_variables(value: impl Fn(&str) -> Option<String>) -> Self {
        let of = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = value(name)?.trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let exceptions = of(["no_proxy", "NO_PROXY"]).map(|(_, text)| text).unwrap_or_default();
        Self {
            http: of(["http_proxy", "HTTP_PROXY"]),
            https: of(["https_proxy", "HTTPS_PROXY"]),
            all: of(["all_proxy", "ALL_PROXY"]),
            exceptions: exceptions
                .split(|c: char| c == ',' || c.is_whitespace())
                .filter_map(Exception::read)
                .collect(),
        }
    }

    /// Returns the proxy for a scheme, host and port; `None` for a direct connection. IPv6
    /// addresses in `host` are in brackets, as in URLs.
    ///
    /// # Errors
    /// The variable is not a usable proxy; connecting directly would ignore the configuration.
    pub fn proxy_for(&self, scheme: &str, host: &str, port: u16) -> Result<Option<Proxy>, Error> {
        let own = if scheme == "https" { &self.https } else { &self.http };
        let Some((variable, value)) = own.as_ref().or(self.all.as_ref()) else { return Ok(None) };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if self.exceptions.iter().any(|exception| exception.covers(&host, port)) {
            return Ok(None);
        }
        Proxy::read(variable, value).map(Some)
    }
}

/// An entry of `no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    /// `*`.
    All,
    /// `10.0.0.0/8`, `fd00::/8`, or a single address.
    Network { address: IpAddr, prefix: u8, port: Option<u16> },
    /// `example.com` and `.example.com`: the domain and its subdomains. `*.example.com`: only its
    /// subdomains.
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl Exception {
    /// Returns `None` for an invalid entry.
    fn read(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, prefix)) = text.split_once('/') {
            let address = bare(address).parse().ok()?;
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= bits(address))?;
            return Some(Self::Network { address, prefix, port: None });
        }
        let (host, port) = match bare(&text).parse::<IpAddr>() {
            Ok(_) => (text.as_str(), None),
            Err(_) => host_and_port(&text)?,
        };
        if let Ok(address) = bare(host).parse() {
            return Some(Self::Network { address, prefix: bits(address), port });
        }
        let (name, itself) = match host.strip_prefix("*.") {
            Some(below) => (below, false),
            None => (host.trim_start_matches('.'), true),
        };
        let name = name.trim_end_matches('.').to_owned();
        (!name.is_empty()).then_some(Self::Domain { name, itself, port })
    }

    /// `host` is in lower case and without a dot at its end.
    fn covers(&self, host: &str, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network { address, prefix, port: only } => {
                only.is_none_or(|only| only == port)
                    && bare(host).parse().is_ok_and(|host| within(host, *address, *prefix))
            }
            Self::Domain { name, itself, port: only } => {
                let below =
                    host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                only.is_none_or(|only| only == port) && (below || (*itself && host == name))
            }
        }
    }
}

/// Returns an IPv6 address without brackets.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn within(host: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let (host, network) = (host.to_canonical(), network.to_canonical());
    let number = |address| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let outside = bits(network).saturating_sub(prefix);
    host.is_ipv4() == network.is_ipv4()
        && (number(host) ^ number(network)).checked_shr(outside.into()).unwrap_or(0) == 0
}

/// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let end = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.find(':').unwrap_or(text.len())
    };
    let (host, rest) = text.split_at(end);
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((host, None)),
        None => None,
        Some("") => Some((host, None)),
        Some(port) => Some((host, Some(port.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_variable() {
        let all = proxies(&[
            ("http_proxy", "http://one:1"),
            ("HTTP_PROXY", "http://other:9"),
            ("HTTPS_PROXY", "two:2"),
            ("all_proxy", "three:3"),
        ]);
        let url = |p: &Proxies, scheme| p.proxy_for(scheme, "h", 80).unwrap().map(|p| p.url());
        assert_eq!(url(&all, "http").as_deref(), Some("http://one:1"));
        assert_eq!(url(&all, "https").as_deref(), Some("http://two:2"));
        let one = proxies(&[("http_proxy", ""), ("ALL_PROXY", "https://[::1]/")]);
        assert_eq!(url(&one, "http").as_deref(), Some("https://[::1]:443"));
        assert_eq!(url(&proxies(&[("https_proxy", "x")]), "http"), None);
        assert_eq!(url(&proxies(&[]), "https"), None);
    }

    #[test]
    fn user_and_password_are_decoded_and_not_shown() {
        let p = proxies(&[("http_proxy", "http://us%40er:p%3Ass/w@proxy:3128")]);
        let proxy = p.proxy_for("http", "h", 80).unwrap().unwrap();
        assert_eq!(proxy.authorization.as_deref(), Some("Basic dXNAZXI6cDpzcy93"));
        assert_eq!(proxy.to_string(), "http://proxy:3128 (from `http_proxy`)");
    }

    #[test]
    fn unusable_proxies_are_errors() {
        for value in
            ["http://", "http://a b", "http://h:x", "http://h:0", "http://[::1", "[x]:1", "@"]
        {
            let refused = proxies(&[("http_proxy", value)]).proxy_for("http", "h", 80);
            assert_eq!(refused, Err(Error::Address { variable: "http_proxy" }), "{value}");
        }
        let socks = proxies(&[("all_proxy", "socks5h://u:secret@h:1080")]);
        let refused = socks.proxy_for("http", "h", 80).unwrap_err();
        assert!(matches!(&refused, Error::Scheme { scheme, .. } if scheme == "socks5h"));
        assert!(!refused.to_string().contains("secret"));
    }

    #[test]
    fn no_proxy_has_networks_domains_and_ports() {
        let direct = |exceptions: &str, host: &str, port| {
            let p = proxies(&[("http_proxy", "x"), ("no_proxy", exceptions)]);
            p.proxy_for("http", host, port).unwrap().is_none()
        };
        for (exceptions, host, port, expected) in [
            ("*", "anything", 80, true),
            ("localhost,127.0.0.0/8", "127.3.2.1", 80, true),
            ("localhost 10.0.0.0/8", "10.255.0.1", 80, true),
            ("10.0.0.0/8", "11.0.0.1", 80, false),
            ("10.0.0.0/8", "10.example", 80, false),
            ("10.0.0.0/33", "10.0.0.1", 80, false),
            ("0.0.0.0/0", "192.0.2.1", 80, true),
            ("0.0.0.0/0", "[2001:db8::1]", 80, false),
            ("::/0", "[2001:db8::1]", 80, true),
            ("192.0.2.1", "192.0.2.1", 80, true),
            ("192.0.2.1", "192.0.2.10", 80, false),
            ("192.0.2.1:81", "192.0.2.1", 80, false),
            ("192.0.2.1:81", "192.0.2.1", 81, true),
            ("fd00::/8", "[fd12::1]", 80, true),
            ("[fd00::1]:80", "[fd00::1]", 80, true),
            ("fd00::1", "[fd00:0::1]", 80, true),
            ("10.0.0.0/8", "[::ffff:10.0.0.1]", 80, true),
            ("Example.com", "EXAMPLE.com.", 80, true),
            ("example.com", "www.example.com", 80, true),
            ("example.com", "badexample.com", 80, false),
            (".example.com", "www.example.com", 80, true),
            (".example.com", "example.com", 80, true),
            ("*.example.com", "a.b.example.com", 80, true),
            ("*.example.com", "example.com", 80, false),
            ("example.com:8080", "example.com", 80, false),
            ("example.com:8080", "example.com", 8080, true),
            (", ,.,*.", "example.com", 80, false),
            ("", "example.com", 80, false),
        ] {
            assert_eq!(direct(exceptions, host, port), expected, "{exceptions:?} {host} {port}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(
            value in "[ -~]{0,40}",
            exceptions in "[ -~]{0,40}",
            host in "[ -~]{0,20}",
        ) {
            let p = proxies(&[("http_proxy", &value), ("no_proxy", &exceptions)]);
            if let Ok(Some(proxy)) = p.proxy_for("http", &host, 80) {
                prop_assert!(!proxy.url().contains(['@', ' ', '\r', '\n']));
            }
        }
    }
}
