//! Viewers of the guest's screen: the supervisor judges who comes and hands the connection to QEMU, which needs neither listen nor
//! make a socket.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::AbortHandle,
};
use tracing::{debug, warn};

use super::{
    adopt,
    door::{self, Door, Listener},
    supervise::{QMP_LIMIT, Supervisor},
};
use crate::{
    control::grant::{self, Grant},
    host::peer,
    plan::facets,
    spec::Vm,
    value::{VncAddress, chain},
};

/// How many viewers may be on their way to QEMU at once; a further one waits to be accepted.
const ON_THEIR_WAY: usize = 16;
/// How long is waited when the kernel has no descriptor left.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// A door where somebody stands, until it is dropped. Who is in stays: the connections are QEMU's.
#[derive(Debug)]
pub(super) struct Serving {
    at: VncAddress,
    orders: watch::Sender<Orders>,
    task: AbortHandle,
}

/// Whom viewers are handed to, and what they are asked for at a port.
#[derive(Debug, Clone)]
struct Orders {
    client: qmp::Client,
    password: Option<String>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Serving {
    /// QEMU's monitor has another connection.
    pub(super) fn by(&self, client: qmp::Client) {
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
        let task = match self.listener {
            Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                tokio::spawn(at_socket(UnixListener::from_std(listener)?, to, grant))
            }
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                tokio::spawn(at_port(TcpListener::from_std(listener)?, to))
            }
        };
        Ok(Serving { at: self.at, orders, task: task.abort_handle() })
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
    let room = Arc::new(Semaphore::new(ON_THEIR_WAY));
    while let Some((place, (viewer, _))) = next(&room, || listener.accept()).await {
        let (client, grant) = (orders.borrow().client.clone(), grant.clone());
        tokio::spawn(async move {
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
    let room = Arc::new(Semaphore::new(ON_THEIR_WAY));
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
        tokio::spawn(async move {
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

impl Supervisor {
    /// Serves the screen of the QEMU that was started; `door` was opened for it.
    pub(super) fn serve_screen(&mut self, door: Option<Door>) {
        let grant = self.operators.grant(&self.vm);
        let (Some(qemu), Some(door)) = (&mut self.qemu, door) else { return };
        qemu.unserved = None;
        match door.serve(qemu.client.clone(), grant) {
            Ok(serving) => qemu.serving = Some(serving),
            Err(error) => self.screen_is_not_served(&error.to_string()),
        }
    }

    /// Serves the screen of a QEMU that runs already, where and how the VM file says now. What hinders is told, and no more.
    pub(super) fn serve_screen_again(&mut self) {
        let Some(qemu) = &mut self.qemu else { return };
        if qemu.listens {
            return;
        }
        qemu.unserved = None;
        let display = self.vm.display.as_ref();
        let at = display.and_then(|display| display.vnc);
        let opened = match &qemu.serving {
            Some(serving) if Some(serving.at) == at => {
                let file = display.and_then(|display| display.password_file.as_ref());
                file.map(|file| door::password(&self.vm, file)).transpose().map(|password| {
                    serving.orders.send_modify(|orders| orders.password = password);
                })
            }
            _ => {
                qemu.serving = None;
                let _ = std::fs::remove_file(self.paths.vnc_socket());
                door::open(&self.vm, &self.paths).map(|door| self.serve_screen(door))
            }
        };
        match opened {
            Ok(()) => {}
            Err(error) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
                self.screen_is_not_served(&(chain(&error) + &hint));
            }
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
    pub(super) fn screen_address(&self) -> Option<String> {
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
    pub(super) fn move_screen(&mut self, new: &Vm) {
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
    pub(super) fn keep_screen(&mut self) {
        let booted = adopt::booted(&self.paths, &self.vm.name, &self.vm.file);
        if let (true, Some((booted, _))) = (self.qemu.as_ref().is_some_and(|q| q.listens), booted) {
            self.take_facets(&booted, &facets::SCREEN);
            self.vm.display = booted.display;
        }
    }
}
