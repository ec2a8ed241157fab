//! Connects requests directly to the server, or through a proxy.
//!
//! ureq uses a tunnel (`CONNECT`) with every proxy, which squid and others allow only for port 443.
//! Here, `http://` requests are sent to the proxy with the absolute URL (RFC 9112, section 3.2.2),
//! and only `https://` uses a tunnel (RFC 9110, section 9.3.6).

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ureq::{
    Error,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{
            Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, RustlsConnector,
            ShutdownHandle, Transport, TransportAdapter,
        },
    },
};

use super::connect::connect_to_any;
use super::proxy::{self, Proxies, Proxy};

/// The maximum length of a proxy's response header, in bytes.
const LONGEST_HEAD: usize = 64 << 10;

/// The status with which a proxy refused a tunnel.
#[derive(Debug, thiserror::Error)]
#[error("the proxy responded with status {0}")]
pub(crate) struct TunnelRefused(pub(crate) u16);

/// The connector of one download.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) proxies: Arc<Proxies>,
    /// The time limit of connecting.
    pub(crate) limit: Duration,
    /// Set when the caller has canceled.
    pub(crate) abandoned: Arc<AtomicBool>,
    /// The proxy of the last connection, for messages.
    pub(crate) through: Arc<Mutex<Option<Proxy>>>,
    pub(crate) tls: Arc<RustlsConnector>,
}

impl Route {
    /// Returns the proxy for a URL.
    fn proxy_for(&self, uri: &Uri) -> Result<Option<Proxy>, Error> {
        let scheme = uri.scheme_str().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let host = uri.host().unwrap_or_default();
        let proxy = self.proxies.proxy_for(scheme, host, port).map_err(other)?;
        *self.through.lock().unwrap_or_else(PoisonError::into_inner) = proxy.clone();
        Ok(proxy)
    }
}

fn other(error: proxy::Error) -> Error {
    Error::Other(Box::new(error))
}

fn proxy_uri(proxy: &Proxy) -> Result<Uri, Error> {
    proxy.url().parse().map_err(|_| Error::InvalidProxyUrl)
}

impl Resolver for Route {
    /// Resolves the address of the server, or of the proxy, which resolves the server's name
    /// itself.
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let resolver = DefaultResolver::default();
        match self.proxy_for(uri)? {
            Some(proxy) => resolver.resolve(&proxy_uri(&proxy)?, config, timeout),
            None => resolver.resolve(uri, config, timeout),
        }
    }
}

impl Connector for Route {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let waited_for = || !self.abandoned.load(Ordering::Acquire);
        let stream = connect_to_any(&details.addrs, self.limit, waited_for)?;
        stream.set_nodelay(true)?;
        let stream = Arc::new(stream);
        let handle: Arc<dyn ShutdownHandle> = Arc::clone(&stream) as _;
        (details.register_shutdown)(Arc::downgrade(&handle))?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        let plain: Box<dyn Transport> = Box::new(Tcp { stream, buffers });
        let Some(proxy) = self.proxy_for(details.uri)? else {
            return Ok(self.tls.connect(details, Some(plain))?.map(Transport::boxed));
        };
        let to_proxy = match proxy.encrypted {
            true => {
                let uri = proxy_uri(&proxy)?;
                let outer = details_of(details, &uri);
                self.tls.connect(&outer, Some(plain))?.map(Transport::boxed)
            }
            false => Some(plain),
        };
        let Some(to_proxy) = to_proxy else { return Ok(None) };
        if details.needs_tls() {
            let tunnel = Tunnel(open_tunnel(to_proxy, details, &proxy)?);
            return Ok(self.tls.connect(details, Some(tunnel))?.map(Transport::boxed));
        }
        let prefix = format!("http://{}", authority(details.uri, None));
        let whole = WholeAddress { inner: to_proxy, prefix, proxy, sent: false };
        Ok(Some(Box::new(whole)))
    }
}

/// Copies the connection details for another URL.
fn details_of<'a>(details: &ConnectionDetails<'a>, uri: &'a Uri) -> ConnectionDetails<'a> {
    ConnectionDetails {
        uri,
        addrs: details.addrs.clone(),
        config: details.config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: details.current_time.clone(),
        run_connector: details.run_connector.clone(),
        register_shutdown: details.register_shutdown.clone(),
    }
}

/// Returns `HOST:PORT` without a user; a missing port is omitted or `default`.
fn authority(uri: &Uri, default: Option<u16>) -> String {
    let host = uri.host().unwrap_or_default();
    match uri.port_u16().or(default) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

fn open_tunnel(
    to_proxy: Box<dyn Transport>,
    details: &ConnectionDetails<'_>,
    proxy: &Proxy,
) -> Result<Box<dyn Transport>, Error> {
    let target = authority(details.uri, Some(443));
    let mut adapter = TransportAdapter::new(to_proxy, details.current_time.clone());
    adapter.set_timeout(details.timeout);
    let mut asked = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        asked.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    adapter.write_all(format!("{asked}\r\n").as_bytes())?;
    let mut head = Vec::new();
    // The bytes after the header come from the server.
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        let mut byte = [0];
        if head.len() >= LONGEST_HEAD || adapter.read(&mut byte)? == 0 {
            return Err(Error::ConnectProxyFailed("the response of the proxy is not HTTP".into()));
        }
        head.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&head);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.get(..3));
    match status.and_then(|status| status.trim().parse::<u16>().ok()) {
        Some(200..300) => Ok(adapter.into_inner()),
        Some(status) => Err(Error::Other(Box::new(TunnelRefused(status)))),
        None => Err(Error::ConnectProxyFailed("the response of the proxy is not HTTP".into())),
    }
}

/// A TCP connection.
#[derive(Debug)]
struct Tcp {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
}

/// Converts a result; a timeout is reported as `WouldBlock`.
fn in_time<T>(result: io::Result<T>, timeout: NextTimeout) -> Result<T, Error> {
    match result {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(Error::Timeout(timeout.reason))
        }
        result => Ok(result?),
    }
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(timeout.not_zero().map(|time| *time))?;
        in_time((&*self.stream).write_all(&self.buffers.output()[..amount]), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let deadline = timeout.not_zero().map(|time| Instant::now().checked_add(*time));
        let read = loop {
            // A signal interrupts the wait, which then continues.
            let left = deadline.flatten().map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Error::Timeout(timeout.reason));
            }
            self.stream.set_read_timeout(left)?;
            match (&*self.stream).read(self.buffers.input_append_buf()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break in_time(read, timeout)?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// Connections are not reused.
    fn is_open(&mut self) -> bool {
        false
    }
}

/// A tunnel through a proxy, before the TLS handshake with the server.
#[derive(Debug)]
struct Tunnel(Box<dyn Transport>);

impl Transport for Tunnel {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.0.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }
}

/// A connection to a proxy that needs the absolute URL in the request line.
#[derive(Debug)]
struct WholeAddress {
    inner: Box<dyn Transport>,
    /// `http://HOST:PORT`, the prefix of the path.
    prefix: String,
    proxy: Proxy,
    /// The request line was sent.
    sent: bool,
}

impl Transport for WholeAddress {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.sent {
            return self.inner.transmit_output(amount, timeout);
        }
        let output = self.inner.buffers().output();
        let Some(head) = rewritten(&output[..amount], &self.prefix, &self.proxy) else {
            return Err(Error::ConnectProxyFailed("the request has no request line".into()));
        };
        if head.len() > output.len() {
            return Err(Error::ConnectProxyFailed("the request is too long for a proxy".into()));
        }
        output[..head.len()].copy_from_slice(&head);
        self.sent = true;
        self.inner.transmit_output(head.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}

/// Returns a request header with `prefix` before its path, and the proxy's authorization.
fn rewritten(head: &[u8], prefix: &str, proxy: &Proxy) -> Option<Vec<u8>> {
    let path = head.iter().position(|byte| *byte == b' ')? + 1;
    let line = head.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let mut out = [&head[..path], prefix.as_bytes(), &head[path..line]].concat();
    if let Some(authorization) = &proxy.authorization {
        out.extend_from_slice(format!("Proxy-Authorization: {authorization}\r\n").as_bytes());
    }
    out.extend_from_slice(&head[line..]);
    Some(out)
}
