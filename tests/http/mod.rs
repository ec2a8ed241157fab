//! An HTTP server on 127.0.0.1 with configurable faults.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// The target: a path, or an address for a proxy.
    pub(crate) path: String,
    /// `Host`.
    pub(crate) host: Option<String>,
    /// `Proxy-Authorization`.
    pub(crate) proxy_authorization: Option<String>,
    /// The first byte of `Range: bytes=N-`.
    pub(crate) from: Option<usize>,
    pub(crate) if_range: Option<String>,
    /// The number of earlier requests.
    pub(crate) nth: usize,
}

pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _timed: crate::lab::timed::Timed,
}

/// A connection.
pub(crate) struct Reply {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Asked, &mut Reply) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, ended, answer) = (Arc::clone(&asked), Arc::clone(&stop), Arc::new(answer));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (log, stop, answer) =
                    (Arc::clone(&log), Arc::clone(&ended), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some(mut request) = read(&stream) else { return };
                    {
                        let mut log: std::sync::MutexGuard<'_, Vec<Asked>> = log.lock().unwrap();
                        request.nth = log.len();
                        log.push(request.clone());
                    }
                    answer(&request, &mut Reply { stream, stop });
                });
            }
        });
        Self { address, asked, stop, thread: Some(thread), _timed: crate::lab::timed::Timed::new() }
    }

    /// Serves `bytes` correctly: with ranges and a strong entity tag.
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        Self::start(move |asked, reply| reply.well(asked, &bytes, "\"v1\""))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let mut asked = Asked { method: words.next()?, path: words.next()?, ..Asked::default() };
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v)) {
            None => return Some(asked),
            Some((name, value)) if name == "range" => {
                let from = value.strip_prefix("bytes=")?.strip_suffix('-')?;
                asked.from = Some(from.parse().ok()?);
            }
            Some((name, value)) => match name.as_str() {
                "if-range" => asked.if_range = Some(value.to_owned()),
                "host" => asked.host = Some(value.to_owned()),
                "proxy-authorization" => asked.proxy_authorization = Some(value.to_owned()),
                _ => {}
            },
        }
    }
    None
}

impl Reply {
    /// Regardless of what the client does.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn head(&mut self, status: u16, headers: &[String]) {
        let mut text = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
        headers.iter().for_each(|h| text.push_str(&format!("{h}\r\n")));
        self.send(format!("{text}\r\n").as_bytes());
    }

    /// 200, or 206 if the range and the tag match.
    pub(crate) fn well(&mut self, asked: &Asked, bytes: &[u8], tag: &str) {
        let tag_line = format!("ETag: {tag}");
        match asked.from {
            Some(from) if asked.if_range.as_deref() == Some(tag) && from < bytes.len() => {
                let (last, all) = (bytes.len() - 1, bytes.len());
                let range = format!("Content-Range: bytes {from}-{last}/{all}");
                self.head(206, &[range, format!("Content-Length: {}", all - from), tag_line]);
                self.send(&bytes[from..]);
            }
            _ => {
                self.head(200, &[format!("Content-Length: {}", bytes.len()), tag_line]);
                self.send(bytes);
            }
        }
    }

    /// Announces the complete length, sends the first `most` bytes, and closes the connection.
    pub(crate) fn cut(&mut self, asked: &Asked, bytes: &[u8], tag: &str, most: usize) {
        let mut all = Vec::new();
        let from = asked.from.filter(|_| asked.if_range.as_deref() == Some(tag)).unwrap_or(0);
        let (status, range) = match from {
            0 => (200, "X: y".to_owned()),
            n => (206, format!("Content-Range: bytes {n}-{}/{}", bytes.len() - 1, bytes.len())),
        };
        all.extend(&bytes[from..bytes.len().min(from + most)]);
        let length = format!("Content-Length: {}", bytes.len() - from);
        self.head(status, &[range, length, format!("ETag: {tag}")]);
        self.send(&all);
    }

    /// Sends a byte at each interval, up to this number.
    pub(crate) fn trickle(&mut self, bytes: &[u8], pause: Duration) {
        for byte in bytes {
            if self.stop.load(Ordering::SeqCst) || self.stream.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(pause);
        }
    }

    /// Relays between the client and this address, like a proxy after `CONNECT`.
    pub(crate) fn tunnel(&mut self, to: &str) {
        let mut server = TcpStream::connect(to).unwrap();
        self.send(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n");
        let (mut from, mut back) = (self.stream.try_clone().unwrap(), server.try_clone().unwrap());
        let up = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut back);
            let _ = back.shutdown(std::net::Shutdown::Write);
        });
        let _ = std::io::copy(&mut server, &mut self.stream);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        up.join().unwrap();
    }

    /// Sends nothing until the client closes the connection or the test ends.
    pub(crate) fn stall(&mut self) {
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(20)));
        let mut byte = [0];
        while !self.stop.load(Ordering::SeqCst) {
            match std::io::Read::read(&mut self.stream, &mut byte) {
                Ok(0) => return,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return,
                _ => {}
            }
        }
    }
}
