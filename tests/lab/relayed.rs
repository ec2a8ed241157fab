//! A relay between a supervisor and QEMU's monitor, which closes the connection at a command.

use std::{
    fs,
    io::{BufRead, BufReader, IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};

use super::{LONG, orphaned::Orphaned};

/// The command at which a connection is closed, before or after QEMU receives it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    Before(&'static str),
    Behind(&'static str),
}

impl Cut {
    fn command(self) -> &'static str {
        let (Self::Before(command) | Self::Behind(command)) = self;
        command
    }
}

/// A VM whose supervisor was killed, with a relay in the place of its monitor.
pub(crate) struct Relayed {
    vm: Orphaned,
    /// QEMU's own socket.
    pub(crate) real: PathBuf,
    next: Arc<Mutex<Option<Cut>>>,
    pub(crate) cuts: Receiver<()>,
    go: Sender<()>,
}

impl Deref for Relayed {
    type Target = Orphaned;

    fn deref(&self) -> &Orphaned {
        &self.vm
    }
}

impl DerefMut for Relayed {
    fn deref_mut(&mut self) -> &mut Orphaned {
        &mut self.vm
    }
}

impl Relayed {
    /// `None` without a guest image of this name.
    pub(crate) fn new(image: &str) -> Option<Self> {
        let vm = Orphaned::booted(image)?;
        let lab = &vm.lab;
        let (socket, real) = (lab.runtime("web", "qmp.sock"), lab.runtime("web", "qmp.real"));
        fs::rename(&socket, &real).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let next = Arc::new(Mutex::new(None));
        let ((told, cuts), (go, goes)) = (channel(), channel());
        thread::spawn({
            let (real, next) = (real.clone(), next.clone());
            move || {
                while let Ok((supervisor, _)) = listener.accept() {
                    let Ok(monitor) = UnixStream::connect(&real) else { return };
                    let is_cut = relay(&supervisor, &monitor, &next);
                    if is_cut && (told.send(()).is_err() || goes.recv().is_err()) {
                        return;
                    }
                }
            }
        });
        Some(Self { vm, real, next, cuts, go })
    }

    pub(crate) fn cut(&self, cut: Cut) {
        *self.next.lock().unwrap() = Some(cut);
    }

    /// Waits until the connection was closed. No supervisor gets another one before `goes_on`.
    pub(crate) fn is_cut(&self) {
        self.cuts.recv_timeout(LONG).unwrap();
    }

    pub(crate) fn goes_on(&self) {
        self.go.send(()).unwrap();
    }

    /// Returns QEMU's run state.
    pub(crate) fn run_state(&self) -> String {
        let mut lines = connect(&self.real, "query-status");
        let status = lines.find(|line| line["return"]["status"].is_string()).unwrap();
        status["return"]["status"].as_str().unwrap().to_owned()
    }

    /// Kills QEMU without its supervisor.
    pub(crate) fn ends(&self) {
        // The connection closes with QEMU.
        connect(&self.real, "quit").for_each(drop);
        super::until("QEMU has exited", || !super::runs(self.qemu));
        // No process listens on the socket now.
        fs::rename(&self.real, self.lab.runtime("web", "qmp.sock")).unwrap();
    }
}

/// Relays lines until one side closes (false), or the connection is to be closed (true).
fn relay(supervisor: &UnixStream, monitor: &UnixStream, next: &Mutex<Option<Cut>>) -> bool {
    let (said, replies) = channel::<String>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for line in BufReader::new(monitor).lines().map_while(Result::ok) {
                let _ = (&*supervisor).write_all(format!("{line}\r\n").as_bytes());
                let _ = said.send(line);
            }
            let _ = supervisor.shutdown(std::net::Shutdown::Both);
        });
        let mut is_cut = false;
        let mut commands = Commands { stream: supervisor, read: vec![], fds: vec![] };
        while let Some((line, fds)) = commands.next() {
            let command: Value = serde_json::from_str(&line).unwrap();
            let cut = next.lock().unwrap().take_if(|cut| command["execute"] == cut.command());
            is_cut = cut.is_some();
            if is_cut {
                supervisor.shutdown(std::net::Shutdown::Both).unwrap();
            }
            if !matches!(cut, Some(Cut::Before(_))) {
                send(monitor, &format!("{line}\n"), &fds);
            }
            if matches!(cut, Some(Cut::Behind(_))) {
                // QEMU discards the commands of a closed connection.
                let id = command["id"].clone();
                let is_reply = |line: &String| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    line["id"] == id
                };
                assert!(replies.iter().any(|line| is_reply(&line)));
            }
            if is_cut {
                break;
            }
        }
        let _ = monitor.shutdown(std::net::Shutdown::Both);
        is_cut
    })
}

/// The lines of a supervisor, each with its descriptors.
struct Commands<'a> {
    stream: &'a UnixStream,
    read: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Commands<'_> {
    fn next(&mut self) -> Option<(String, Vec<OwnedFd>)> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8(line).unwrap().trim_end().to_owned();
                return Some((line, std::mem::take(&mut self.fds)));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 4096];
            let mut into = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg(self.stream, &mut into, &mut control, RecvFlags::empty()).ok()?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    self.fds.extend(fds);
                }
            }
            if got.bytes == 0 {
                return None;
            }
            self.read.extend_from_slice(&bytes[..got.bytes]);
        }
    }
}

fn send(monitor: &UnixStream, line: &str, fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let line = [IoSlice::new(line.as_bytes())];
    sendmsg(monitor, &line, &mut control, SendFlags::empty()).unwrap();
}

/// Sends one command to the monitor; returns all output of QEMU after it.
fn connect(real: &Path, command: &str) -> impl Iterator<Item = Value> {
    let stream = UnixStream::connect(real).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    for command in ["qmp_capabilities", command] {
        (&stream).write_all(format!("{}\n", json!({ "execute": command })).as_bytes()).unwrap();
    }
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.map(|line| {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert!(line["error"].is_null(), "{line}");
        line
    })
}

/// Executes one command at the monitor, and waits for an event that it causes.
pub(crate) fn command_qemu(real: &Path, command: &str, event: &str) {
    assert!(connect(real, command).any(|line| line["event"] == event), "no event {event}");
}
