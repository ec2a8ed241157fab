//! Registers the VM with systemd-machined in a task, so that `machinectl` lists it while it runs.

use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::{
    net::{broker::Network, link::Links, tap_spec::Tap},
    supervisor::context::Context,
    systemd::{
        machined::{Error, Machined},
        registration::Machine,
    },
    value::chain,
};

/// The time limit of a call; machined may be started on demand.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the end of the supervisor waits for machined.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The VM's registration with systemd-machined.
#[derive(Debug, Default)]
pub(crate) struct Registration(Option<Registered>);

#[derive(Debug)]
struct Registered {
    machined: Machined,
    /// The last registration, and its result.
    task: JoinSet<(Machine, bool)>,
}

impl Registration {
    /// Registers the machine of this UUID with these taps, which differ for each QEMU process.
    pub(crate) fn register(&mut self, uuid: Option<String>, taps: Vec<Tap>, ctx: &Context) {
        let settings = ctx.settings();
        let Some(socket) = settings.machined.clone().filter(|_| ctx.is_under_systemd()) else {
            return;
        };
        let Some(uuid) = uuid else { return };
        let (name, network) = (settings.name.clone(), settings.network.clone());
        let machined = Machined { socket, limit: ANSWER_LIMIT };
        let control = ctx.paths().control_socket();
        let last = self.0.take().map(|registered| registered.task);
        let mut task = JoinSet::new();
        {
            let machined = machined.clone();
            task.spawn(async move {
                let last = match last {
                    Some(mut task) => task.join_next().await.and_then(Result::ok),
                    None => None,
                };
                let if_indices = indexes(&network, &taps).await;
                let machine = Machine { name, uuid, leader: std::process::id(), if_indices };
                if let Some(registered) = last.filter(|(registered, _)| *registered == machine) {
                    return registered;
                }
                let accepted = match machined.register(&machine, &control).await {
                    Ok(()) => true,
                    Err(error @ Error::Taken(_)) => {
                        warn!("`machinectl` will not list this VM: {}", chain(&error));
                        false
                    }
                    // machined may not be installed.
                    Err(error) => {
                        debug!("`machinectl` will not list this VM: {}", chain(&error));
                        false
                    }
                };
                (machine, accepted)
            });
        }
        self.0 = Some(Registered { machined, task });
    }

    /// Unregisters the machine. After a timeout, machined detects the end of the unit itself.
    pub(crate) async fn unregister(&mut self) {
        let Some(Registered { machined, mut task }) = self.0.take() else { return };
        let unregistered = tokio::time::timeout(END_LIMIT, async {
            match task.join_next().await {
                Some(Ok((machine, true))) => machined.unregister(&machine).await,
                // Another process has registered a machine of that name.
                Some(Ok((_, false)) | Err(_)) | None => Ok(()),
            }
        });
        match unregistered.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!("cannot unregister the VM from systemd-machined: {}", chain(&error));
            }
            Err(_) => debug!("cannot unregister the VM from systemd-machined in time"),
        }
    }
}

/// Returns the ifindexes of the taps; a tap without a readable ifindex is skipped.
async fn indexes(network: &Network, taps: &[Tap]) -> Vec<u32> {
    if taps.is_empty() {
        return vec![];
    }
    let mut found = vec![];
    if let Ok(links) = Links::open(network.connect().await) {
        for tap in taps {
            found.extend(links.find(&tap.name).await.ok().flatten().map(|link| link.index));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixListener,
    };

    use super::*;
    use crate::supervisor::tests::{Host, Unit};

    const UUID: &str = "615aebfc-29b4-4c0f-b886-ca68b5dcc622";

    /// A host on which systemd-machined answers each call by this, and the calls.
    fn host(answer: Value) -> (Host, Arc<Mutex<Vec<Value>>>, JoinSet<()>) {
        let unit = Unit::new();
        let host = Host::in_unit_with(&unit, |settings| {
            settings.machined = Some(settings.root.join("machined"));
        });
        let listener = UnixListener::bind(host.dir.path().join("machined")).unwrap();
        let calls = Arc::new(Mutex::new(vec![]));
        let (seen, mut served) = (calls.clone(), JoinSet::new());
        served.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut stream, mut call) = (BufReader::new(stream), vec![]);
                stream.read_until(0, &mut call).await.unwrap();
                call.pop();
                seen.lock().unwrap().push(serde_json::from_slice(&call).unwrap());
                stream.write_all(format!("{answer}\0").as_bytes()).await.unwrap();
            }
        });
        (host, calls, served)
    }

    fn methods(calls: &Mutex<Vec<Value>>) -> Vec<String> {
        let calls = calls.lock().unwrap();
        calls.iter().map(|call| call["method"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn unit_is_registered_and_unregistered() {
        let (host, calls, _served) = host(json!({ "parameters": {} }));
        let mut registration = Registration::default();
        registration.register(Some(UUID.into()), vec![], &host.ctx);
        registration.unregister().await;
        let names = ["io.systemd.Machine.Register", "io.systemd.Machine.Unregister"];
        assert_eq!(methods(&calls), names);
        let parameters = calls.lock().unwrap()[0]["parameters"].clone();
        assert_eq!(parameters["name"], "web");
        assert_eq!(parameters["leader"], std::process::id());
        let control = host.ctx.paths().control_socket();
        assert_eq!(parameters["controlAddress"], control.display().to_string());
        // The second call has nothing to unregister.
        registration.unregister().await;
        assert_eq!(methods(&calls).len(), 2);
    }

    #[tokio::test]
    async fn relaunch_with_same_taps_is_the_same_machine() {
        let (host, calls, _served) = host(json!({ "parameters": {} }));
        let mut registration = Registration::default();
        for _ in 0..3 {
            registration.register(Some(UUID.into()), vec![], &host.ctx);
        }
        registration.unregister().await;
        assert_eq!(methods(&calls).len(), 2, "{:?}", methods(&calls));
    }

    #[tokio::test]
    async fn refused_machine_is_not_unregistered() {
        let (host, calls, _served) = host(json!({ "error": "io.systemd.Machine.Denied" }));
        let mut registration = Registration::default();
        registration.register(Some(UUID.into()), vec![], &host.ctx);
        registration.unregister().await;
        assert_eq!(methods(&calls), ["io.systemd.Machine.Register"]);
    }

    #[tokio::test]
    async fn qemu_without_a_uuid_is_not_registered() {
        let (host, calls, _served) = host(json!({ "parameters": {} }));
        let mut registration = Registration::default();
        registration.register(None, vec![], &host.ctx);
        registration.unregister().await;
        assert_eq!(methods(&calls), Vec::<String>::new());
    }

    #[tokio::test]
    async fn vm_outside_a_unit_is_not_registered() {
        let host = Host::new();
        let mut registration = Registration::default();
        registration.register(Some("uuid".into()), vec![], &host.ctx);
        assert!(registration.0.is_none());
        registration.unregister().await;
    }

    #[tokio::test]
    async fn vm_without_taps_has_no_indexes() {
        assert_eq!(indexes(&Network::default(), &[]).await, Vec::<u32>::new());
    }
}
