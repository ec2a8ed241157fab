//! Viewers of the guest's screen: the supervisor authorizes them and passes their connections to
//! QEMU, which requires no listening socket.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tracing::{debug, warn};

use super::{
    event::{ScreenOpened, VmEvent},
    qemu::Qemu,
    vnc_listener::{self, VncListener, VncSocket},
};
use crate::{
    control::authorizer::{self, Authorizer},
    spec::Vm,
    store::layout::VmPaths,
    supervisor::{config::ScreenOwner, context::Context, limits::QMP_LIMIT},
    sys::{peer, tasks::Tasks},
    value::{Explain, Note, NoteCode, VncAddress, chain},
};

/// The maximum of viewers that are being passed to QEMU; further ones are not accepted yet.
const ON_THEIR_WAY: usize = 16;
/// The delay after a lack of descriptors.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// Accepts viewers until it is dropped. QEMU owns the connections of accepted viewers.
#[derive(Debug)]
struct Acceptor {
    at: VncAddress,
    target: watch::Sender<Target>,
    _tasks: Tasks,
}

/// The destination of viewers, and the password for a TCP port.
#[derive(Debug, Clone)]
struct Target {
    client: qmp::Client,
    password: Option<String>,
}

impl VncListener {
    /// Starts to accept viewers.
    ///
    /// # Errors
    /// The runtime cannot register the socket.
    fn accept(self, client: qmp::Client, authorizer: Authorizer) -> std::io::Result<Acceptor> {
        let (target, to) = watch::channel(Target { client, password: self.password });
        let mut tasks = Tasks::default();
        match self.socket {
            VncSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tasks.spawn(at_socket(UnixListener::from_std(listener)?, to, authorizer));
            }
            VncSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tasks.spawn(at_port(TcpListener::from_std(listener)?, to));
            }
        }
        Ok(Acceptor { at: self.at, target, _tasks: tasks })
    }
}

/// Accepts the next viewer, below the limit of [`ON_THEIR_WAY`].
async fn next<V, A: Future<Output = std::io::Result<V>>>(
    room: &Arc<Semaphore>,
    accept: impl Fn() -> A,
) -> Option<(OwnedSemaphorePermit, V)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    loop {
        match accept().await {
            Ok(viewer) => return Some((permit, viewer)),
            Err(error) => {
                warn!("cannot accept a viewer of the screen: {error}");
                tokio::time::sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Admits operators, without a password.
async fn at_socket(
    listener: UnixListener,
    target: watch::Receiver<Target>,
    authorizer: Authorizer,
) {
    let (room, mut tasks) = (Arc::new(Semaphore::new(ON_THEIR_WAY)), Tasks::default());
    while let Some((permit, (viewer, _))) = next(&room, || listener.accept()).await {
        let (client, authorizer) = (target.borrow().client.clone(), authorizer.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let peer = match peer::of(viewer.as_fd()) {
                Ok(peer) => peer,
                Err(error) => return warn!("cannot get peer credentials of a viewer: {error}"),
            };
            if let Err(denied) = authorizer.check(&peer, authorizer::SCREEN).await {
                return warn!("{denied}");
            }
            debug!("uid {} views the screen", peer.uid);
            hand_over(&client, viewer.into_std().map(Into::into), true).await;
        });
    }
}

/// Passes any client to QEMU, which requires the password.
async fn at_port(listener: TcpListener, mut target: watch::Receiver<Target>) {
    let (room, mut tasks) = (Arc::new(Semaphore::new(ON_THEIR_WAY)), Tasks::default());
    target.mark_changed();
    while let Some((permit, (viewer, _))) = next(&room, || listener.accept()).await {
        let changed = target.has_changed().unwrap_or(false);
        let Target { client, password } = target.borrow_and_update().clone();
        // QEMU rejects all viewers without a password. It is set for each viewer, so that a changed
        // one applies.
        if changed
            && let Some(password) = password
            && let Err(error) = client.set_vnc_password(&password, QMP_LIMIT).await
        {
            warn!("QEMU did not accept the screen's password: {}", chain(&error));
            target.mark_changed();
            continue;
        }
        tasks.spawn(async move {
            let _permit = permit;
            hand_over(&client, viewer.into_std().map(Into::into), false).await;
        });
    }
}

async fn hand_over(client: &qmp::Client, viewer: std::io::Result<OwnedFd>, trusted: bool) {
    let handed = match viewer {
        Ok(viewer) => client.add_viewer(viewer, trusted, QMP_LIMIT).await,
        Err(error) => return warn!("cannot accept a viewer of the screen: {error}"),
    };
    if let Err(error) = handed {
        warn!("QEMU did not accept a viewer of the screen: {}", chain(&error));
    }
}

/// Opens the screen's listener for a QEMU that runs. Blocks as long as the storage does.
fn open_again(vm: &Vm, paths: &VmPaths, stays: bool) -> Result<ScreenOpened, String> {
    let opened = if stays {
        let file = vm.display.as_ref().and_then(|display| display.password_file.as_ref());
        file.map(|file| vnc_listener::password(vm, file)).transpose().map(ScreenOpened::Password)
    } else {
        let _ = std::fs::remove_file(paths.vnc_socket());
        vnc_listener::open(vm, paths).map(ScreenOpened::Listener)
    };
    opened.map_err(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        chain(&error) + &hint
    })
}

#[derive(Debug)]
pub(crate) struct Screen {
    owner: ScreenOwner,
    acceptor: Option<Acceptor>,
    /// Why the screen is not served as configured.
    problem: Option<String>,
}

impl Screen {
    /// Creates a screen that the supervisor does not serve yet.
    pub(crate) fn new(owner: ScreenOwner) -> Self {
        Self { owner, acceptor: None, problem: None }
    }

    /// Returns the process that listens for viewers.
    pub(crate) fn owner(&self) -> ScreenOwner {
        self.owner
    }

    /// Serves the screen at `listener`.
    ///
    /// # Errors
    /// Why it is not served, also noted and logged.
    pub(crate) fn serve(
        &mut self,
        listener: Option<VncListener>,
        authorizer: Authorizer,
        qemu: &Qemu,
    ) -> Result<(), String> {
        let Some(listener) = listener else { return Ok(()) };
        self.problem = None;
        match listener.accept(qemu.client(), authorizer) {
            Ok(acceptor) => {
                self.acceptor = Some(acceptor);
                Ok(())
            }
            Err(error) => Err(self.fail(&error.to_string())),
        }
    }

    /// Opens the screen again as configured in `vm`. Ends with a report.
    pub(crate) fn open_again(
        &mut self,
        vm: &Vm,
        qemu: &mut Qemu,
        ctx: &Context,
    ) -> impl Future<Output = ()> + Send + use<> {
        let opened = (self.owner == ScreenOwner::Supervisor).then(|| {
            self.problem = None;
            let at = vm.display.as_ref().and_then(|display| display.vnc);
            let stays = self.acceptor.as_ref().is_some_and(|acceptor| at == Some(acceptor.at));
            if !stays {
                self.acceptor = None;
            }
            let (vm, paths) = (vm.clone(), ctx.paths().clone());
            // On the lane of QEMU's starts, which open the screen, too.
            ctx.lanes().launch.ask(move || open_again(&vm, &paths, stays))
        });
        let reports = qemu.tasks().sender();
        async move {
            let Some(opened) = opened else { return };
            let opened = opened.await.unwrap_or_else(|refused| Err(refused.to_string()));
            let _ = reports.send(VmEvent::Screen(opened)).await;
        }
    }

    /// Handles the opened listener.
    ///
    /// # Errors
    /// Why the screen is not served, also noted and logged.
    pub(crate) fn handle(
        &mut self,
        opened: Result<ScreenOpened, String>,
        authorizer: Authorizer,
        qemu: &Qemu,
    ) -> Result<(), String> {
        match opened {
            Ok(ScreenOpened::Password(password)) => {
                if let Some(acceptor) = &self.acceptor {
                    acceptor.target.send_modify(|target| target.password = password);
                }
                Ok(())
            }
            Ok(ScreenOpened::Listener(listener)) => self.serve(listener, authorizer, qemu),
            Err(why) => Err(self.fail(&why)),
        }
    }

    fn fail(&mut self, why: &str) -> String {
        let problem = format!("the screen is not served as configured: {why}");
        warn!("{problem}");
        self.problem = Some(problem.clone());
        problem
    }

    /// Replaces the QMP connection.
    pub(crate) fn use_connection(&self, client: qmp::Client) {
        if let Some(acceptor) = &self.acceptor {
            acceptor.target.send_modify(|target| target.client = client);
        }
    }

    /// Returns the address of the screen: `unix:PATH` or `ADDRESS:PORT`.
    pub(crate) fn address(&self, vm: &Vm, paths: &VmPaths) -> Option<String> {
        let at = match &self.acceptor {
            Some(acceptor) => acceptor.at,
            None => vm.display.as_ref()?.vnc.filter(|_| self.owner == ScreenOwner::Qemu)?,
        };
        Some(match at {
            VncAddress::Unix => format!("unix:{}", paths.vnc_socket().display()),
            VncAddress::Tcp(at) => at.to_string(),
        })
    }

    /// Returns the notes for the status.
    pub(crate) fn note(&self) -> Option<Note> {
        let text = self.problem.clone()?;
        Some(Note::new(NoteCode::ScreenNotServed, text).key("display.vnc"))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;
    use crate::supervisor::{
        operators::Operators,
        tests::{Answer, FakeQemu, Host, vm},
    };

    const UNIX: &str = "[display]\nvnc = \"unix\"\n";

    async fn opened(fake: &mut FakeQemu) -> Result<ScreenOpened, String> {
        let VmEvent::Screen(opened) = fake.event().await else { panic!() };
        opened
    }

    /// A screen at a socket.
    async fn served(host: &Host, fake: &FakeQemu) -> Screen {
        let vm = vm(UNIX);
        let mut screen = Screen::new(ScreenOwner::Supervisor);
        let listener = vnc_listener::open(&vm, host.ctx.paths()).unwrap();
        assert!(listener.is_some());
        screen.serve(listener, Operators::new().authorizer(&vm), &fake.qemu).unwrap();
        screen
    }

    #[tokio::test]
    async fn viewer_is_passed_to_qemu() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let screen = served(&host, &fake).await;
        let address = screen.address(&vm(UNIX), host.ctx.paths()).unwrap();
        assert!(address.starts_with("unix:") && address.ends_with("vnc.sock"), "{address}");
        let _viewer = UnixStream::connect(host.ctx.paths().vnc_socket()).unwrap();
        fake.peer.commands.until("add_client").await;
        let arguments = fake.peer.commands.arguments("add_client");
        assert_eq!(arguments["protocol"], "vnc");
        // An operator needs no password.
        assert_eq!(arguments["skipauth"], true);
    }

    #[tokio::test]
    async fn viewer_that_qemu_refuses_is_hung_up() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        fake.peer.script.on("getfd", Answer::Refuse("no"));
        let _screen = served(&host, &fake).await;
        let mut viewer = UnixStream::connect(host.ctx.paths().vnc_socket()).unwrap();
        let ended = tokio::task::spawn_blocking(move || viewer.read(&mut [0; 1]));
        assert_eq!(ended.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn dropped_screen_accepts_nobody() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        drop(served(&host, &fake).await);
        while UnixStream::connect(host.ctx.paths().vnc_socket()).is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn screen_without_an_address_is_not_served() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let vm = vm("[display]\n");
        let mut screen = served(&host, &fake).await;
        screen.open_again(&vm, &mut fake.qemu, &host.ctx).await;
        let found = opened(&mut fake).await;
        let authorizer = Operators::new().authorizer(&vm);
        screen.handle(found, authorizer, &fake.qemu).unwrap();
        assert_eq!(screen.address(&vm, host.ctx.paths()), None);
        assert!(!host.ctx.paths().vnc_socket().exists());
    }

    #[tokio::test]
    async fn unchanged_address_keeps_its_listener() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut screen = served(&host, &fake).await;
        screen.open_again(&vm(UNIX), &mut fake.qemu, &host.ctx).await;
        let found = opened(&mut fake).await;
        assert!(matches!(found, Ok(ScreenOpened::Password(None))), "{found:?}");
        assert!(screen.address(&vm(UNIX), host.ctx.paths()).is_some());
    }

    #[tokio::test]
    async fn missing_password_is_noted() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let text = UNIX.replace("\"unix\"", "\"127.0.0.1:5999\"\npasswordFile = \"/no/such\"");
        let vm = vm(&text);
        let mut screen = served(&host, &fake).await;
        screen.open_again(&vm, &mut fake.qemu, &host.ctx).await;
        let found = opened(&mut fake).await;
        let authorizer = Operators::new().authorizer(&vm);
        let why = screen.handle(found, authorizer, &fake.qemu).unwrap_err();
        assert!(why.starts_with("the screen is not served"), "{why}");
        assert_eq!(screen.note().unwrap().text, why);
    }

    #[tokio::test]
    async fn screen_of_qemu_is_left_alone() {
        let host = Host::new();
        let mut fake = FakeQemu::new(&host).await;
        let mut screen = Screen::new(ScreenOwner::Qemu);
        screen.open_again(&vm(UNIX), &mut fake.qemu, &host.ctx).await;
        assert!(fake.events.try_recv().is_err());
        assert!(screen.address(&vm(UNIX), host.ctx.paths()).is_some());
        assert_eq!(screen.owner(), ScreenOwner::Qemu);
        screen.use_connection(fake.qemu.client());
    }
}
