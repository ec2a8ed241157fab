//! Viewers of the guest's screen: the supervisor judges who comes and hands the connection to QEMU, which needs neither listen nor
//! make a socket.

use crate::supervisor::limits::QMP_LIMIT;
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

use super::vnc_listener::{self, Door, Listener};
use crate::{
    control::grant::{self, Grant},
    machine::facets,
    spec::Vm,
    store::layout::VmPaths,
    sys::peer,
    value::{VncAddress, chain},
};
use crate::{
    supervisor::{Supervisor, input::Fact},
    sys::tasks::Tasks,
};

/// How many viewers may be on their way to QEMU at once; a further one waits to be accepted.
const ON_THEIR_WAY: usize = 16;
/// How long is waited when the kernel has no descriptor left.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// A door where somebody stands, until it is dropped. Who is in stays: the connections are QEMU's.
#[derive(Debug)]
pub(crate) struct Serving {
    at: VncAddress,
    orders: watch::Sender<Orders>,
    /// Who stands there; ends with it.
    _tasks: Tasks,
}

/// Whom viewers are handed to, and what they are asked for at a port.
#[derive(Debug, Clone)]
struct Orders {
    client: qmp::Client,
    password: Option<String>,
}

impl Serving {
    /// QEMU's monitor has another connection.
    pub(crate) fn by(&self, client: qmp::Client) {
        self.orders.send_modify(|orders| orders.client = client);
    }
}

impl Door {
    /// Stands there.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    fn serve(self, client: qmp::Client, grant: Grant) -> std::io::Result<Serving> {
        let (orders, to) = watch::channel(Orders { client, password: self.password });
        let mut tasks = Tasks::default();
        match self.listener {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tasks.spawn(at_socket(UnixListener::from_std(listener)?, to, grant));
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tasks.spawn(at_port(TcpListener::from_std(listener)?, to));
            }
        }
        Ok(Serving { at: self.at, orders, _tasks: tasks })
    }
}

/// The next one who comes, once there is room.
async fn next<V, A: Future<Output = std::io::Result<V>>>(
    room: &Arc<Semaphore>,
    accept: impl Fn() -> A,
) -> Option<(OwnedSemaphorePermit, V)> {
    let place = room.clone().acquire_owned().await.ok()?;
    loop {
        match accept().await {
            Ok(viewer) => return Some((place, viewer)),
            Err(error) => {
                warn!("a viewer of the screen was lost: {error}");
                tokio::time::sleep(NO_DESCRIPTOR).await;
            }
        }
    }
}

/// Lets operators in, who need no password.
async fn at_socket(listener: UnixListener, orders: watch::Receiver<Orders>, grant: Grant) {
    let (room, mut tasks) = (Arc::new(Semaphore::new(ON_THEIR_WAY)), Tasks::default());
    while let Some((place, (viewer, _))) = next(&room, || listener.accept()).await {
        let (client, grant) = (orders.borrow().client.clone(), grant.clone());
        tasks.spawn(async move {
            let _place = place;
            let peer = match peer::of(viewer.as_fd()) {
                Ok(peer) => peer,
                Err(error) => return warn!("who wants to see the screen cannot be told: {error}"),
            };
            if let Err(denied) = grant.check(&peer, grant::SCREEN).await {
                return warn!("{denied}");
            }
            debug!("uid {} looks at the screen", peer.uid);
            hand_over(&client, viewer.into_std().map(Into::into), true).await;
        });
    }
}

/// Lets everybody come as far as QEMU's question for the password.
async fn at_port(listener: TcpListener, mut orders: watch::Receiver<Orders>) {
    let (room, mut tasks) = (Arc::new(Semaphore::new(ON_THEIR_WAY)), Tasks::default());
    orders.mark_changed();
    while let Some((place, (viewer, _))) = next(&room, || listener.accept()).await {
        let changed = orders.has_changed().unwrap_or(false);
        let Orders { client, password } = orders.borrow_and_update().clone();
        // QEMU lets nobody in before it has one. It is told when somebody comes, so that whoever comes after a change meets the new one.
        if changed
            && let Some(password) = password
            && let Err(error) = client.set_vnc_password(&password, QMP_LIMIT).await
        {
            warn!("QEMU did not take the screen's password: {}", chain(&error));
            orders.mark_changed();
            continue;
        }
        tasks.spawn(async move {
            let _place = place;
            hand_over(&client, viewer.into_std().map(Into::into), false).await;
        });
    }
}

async fn hand_over(client: &qmp::Client, viewer: std::io::Result<OwnedFd>, trusted: bool) {
    let handed = match viewer {
        Ok(viewer) => client.add_viewer(viewer, trusted, QMP_LIMIT).await,
        Err(error) => return warn!("a viewer of the screen was lost: {error}"),
    };
    if let Err(error) = handed {
        warn!("QEMU did not take a viewer of the screen: {}", chain(&error));
    }
}

/// What was opened for a QEMU that runs.
#[derive(Debug)]
pub(crate) enum Opened {
    /// The door is where it was; the password at it.
    Password(Option<String>),
    /// Another door, or none.
    Door(Option<Door>),
}

/// Blocks for as long as the storage does.
fn open_again(vm: &Vm, paths: &VmPaths, stays: bool) -> Result<Opened, String> {
    let opened = if stays {
        let file = vm.display.as_ref().and_then(|display| display.password_file.as_ref());
        file.map(|file| vnc_listener::password(vm, file)).transpose().map(Opened::Password)
    } else {
        let _ = std::fs::remove_file(paths.vnc_socket());
        vnc_listener::open(vm, paths).map(Opened::Door)
    };
    opened.map_err(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        chain(&error) + &hint
    })
}

impl Supervisor {
    /// Serves the screen of the QEMU that was started; `door` was opened for it.
    pub(crate) fn serve_screen(&mut self, door: Option<Door>) {
        let grant = self.operators.grant(&self.vm);
        let (Some(qemu), Some(door)) = (&mut self.qemu, door) else { return };
        qemu.unserved = None;
        match door.serve(qemu.client.clone(), grant) {
            Ok(serving) => qemu.serving = Some(serving),
            Err(error) => self.screen_is_not_served(&error.to_string()),
        }
    }

    /// Serves the screen of a QEMU that runs already, where and how the VM file says now. It is opened beside the loop; complete when
    /// the loop has been told.
    pub(crate) fn serve_screen_again(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let vm = self.vm.clone();
        let opened = self.qemu.as_mut().filter(|qemu| !qemu.listens).map(|qemu| {
            qemu.unserved = None;
            let display = vm.display.as_ref();
            let stays = qemu.serving.as_ref().is_some_and(|serving| {
                display.is_some_and(|display| display.vnc == Some(serving.at))
            });
            if !stays {
                qemu.serving = None;
            }
            let paths = self.paths.clone();
            // With the starts of QEMU, which open the screen as well.
            self.lanes.launch.ask(move || open_again(&vm, &paths, stays))
        });
        let (facts, generation) = (self.facts.clone(), self.generation);
        async move {
            let Some(opened) = opened else { return };
            let opened = opened.await.unwrap_or_else(|refused| Err(refused.to_string()));
            let _ = facts.send(Fact::Screen(generation, opened)).await;
        }
    }

    /// The screen is open. What hinders is told, and no more.
    pub(crate) fn screen_opened(&mut self, opened: Result<Opened, String>) {
        match opened {
            Ok(Opened::Password(password)) => {
                if let Some(serving) = self.qemu.as_ref().and_then(|qemu| qemu.serving.as_ref()) {
                    serving.orders.send_modify(|orders| orders.password = password);
                }
            }
            Ok(Opened::Door(door)) => self.serve_screen(door),
            Err(why) => self.screen_is_not_served(&why),
        }
    }

    fn screen_is_not_served(&mut self, why: &str) {
        let note = format!("the screen is not served as the VM file says: {why}");
        warn!("{note}");
        if let Some(qemu) = &mut self.qemu {
            qemu.unserved = Some(note);
        }
        // So the next `qvm apply` tries again.
        self.running.set(facets::SCREEN[0], Some("not served".to_owned()));
    }

    /// Where the screen is served, by us or by QEMU.
    pub(crate) fn screen_address(&self) -> Option<String> {
        let qemu = self.qemu.as_ref()?;
        let at = match &qemu.serving {
            Some(serving) => serving.at,
            None => self.vm.display.as_ref()?.vnc.filter(|_| qemu.listens)?,
        };
        Some(match at {
            VncAddress::Unix => format!("unix:{}", self.paths.vnc_socket().display()),
            VncAddress::Tcp(at) => at.to_string(),
        })
    }

    /// Takes another place or another password for the screen, where QEMU was started with one that can be served: that is this
    /// process's own business then.
    pub(crate) fn move_screen(&mut self, new: &Vm) {
        if self.qemu.as_ref().is_some_and(|qemu| qemu.listens) {
            return;
        }
        let (Some(runs), Some(written)) = (&mut self.vm.display, &new.display) else { return };
        if runs.vnc.is_none() {
            return;
        }
        runs.clone_from(written);
        self.take_facets(new, &facets::SCREEN);
    }

    /// A QEMU that an earlier qvm has listen by itself does so where it was told when it was started.
    pub(crate) fn keep_screen(&mut self) {
        let booted = self.booted.take();
        if let (true, Some(booted)) = (self.qemu.as_ref().is_some_and(|q| q.listens), booted) {
            self.take_facets(&booted, &facets::SCREEN);
            self.vm.display = booted.display;
        }
    }
}
