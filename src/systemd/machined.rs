//! Registers VMs with systemd-machined.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::registration::Machine;
use crate::sys::program::{self, Output, Program};

/// The number of attempts and the pause between them: an unregistered machine is listed for a
/// moment.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// The largest reply that is read, in bytes.
const ANSWER: usize = 1 << 20;

/// Why a registration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another machine has the name.
    #[error("another machine has the name `{0}`")]
    Taken(String),
    /// machined refused.
    #[error("systemd-machined refused: {0}")]
    Refused(String),
    /// machined did not reply.
    #[error("cannot call systemd-machined")]
    Io(#[from] io::Error),
    /// `machinectl` or `busctl` did not complete.
    #[error("cannot call systemd-machined")]
    Program(#[source] program::Error),
}

/// The connection to machined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machined {
    /// The varlink socket; without one, D-Bus is used.
    pub socket: PathBuf,
    /// The limit for a reply; machined is started on demand.
    pub limit: Duration,
}

impl Machined {
    /// Registers the VM. A registration of an earlier supervisor is replaced.
    ///
    /// # Errors
    /// machined is not installed or refuses, or another machine has the name.
    pub async fn register(&self, machine: &Machine, control: &Path) -> Result<(), Error> {
        if !self.socket.exists() {
            return self.register_by_dbus(machine).await;
        }
        let name = json!({ "name": machine.name.as_str() });
        let mut parameters = machine.parameters(Some(control));
        for _ in 0..TRIES {
            match self.call("Register", &parameters).await? {
                Ok(_) => return Ok(()),
                Err((code, _)) if code.ends_with(".MachineExists") => {
                    match self.call("List", &name).await? {
                        Ok(listed) if !machine.is_listed(&listed) => {
                            return Err(Error::Taken(machine.name.to_string()));
                        }
                        Ok(_) => drop(self.call("Unregister", &name).await?),
                        // The machine has ended meanwhile.
                        Err(_) => {}
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                // An older machined does not support `controlAddress`.
                Err((code, about))
                    if code.ends_with(".InvalidParameter") && about == "controlAddress" =>
                {
                    parameters = machine.parameters(None);
                }
                Err((error, _)) => return Err(Error::Refused(error)),
            }
        }
        Err(Error::Refused(format!("{TRIES} attempts failed")))
    }

    /// Unregisters the VM if it is registered.
    ///
    /// # Errors
    /// Those of [`Self::register`].
    pub async fn unregister(&self, machine: &Machine) -> Result<(), Error> {
        if !self.socket.exists() {
            return self.unregister_by_dbus(machine).await;
        }
        let name = json!({ "name": machine.name.as_str() });
        match self.call("Unregister", &name).await? {
            Err((code, _)) if !code.ends_with(".NoSuchMachine") => Err(Error::Refused(code)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn register_by_dbus(&self, machine: &Machine) -> Result<(), Error> {
        let mut tried = self.try_dbus(machine).await;
        for _ in 1..TRIES {
            if !matches!(tried, Err(Error::Refused(_))) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            tried = self.try_dbus(machine).await;
        }
        tried
    }

    async fn try_dbus(&self, machine: &Machine) -> Result<(), Error> {
        let name = machine.name.as_str();
        let properties = ["show", "--property=Service", "--property=Id", "--", name];
        if let Ok(shown) = run("machinectl", properties.map(Into::into).to_vec(), self.limit).await
        {
            if !machine.is_shown(&shown) {
                return Err(Error::Taken(name.to_owned()));
            }
            self.unregister_by_dbus(machine).await?;
        }
        self.busctl(machine.call()).await
    }

    async fn unregister_by_dbus(&self, machine: &Machine) -> Result<(), Error> {
        self.busctl(vec!["UnregisterMachine".into(), "s".into(), machine.name.to_string()]).await
    }

    /// A method of machined's manager.
    async fn busctl(&self, call: Vec<String>) -> Result<(), Error> {
        let manager = [
            "org.freedesktop.machine1",
            "/org/freedesktop/machine1",
            "org.freedesktop.machine1.Manager",
        ];
        let limit = format!("--timeout={}", self.limit.as_secs());
        let mut words = vec!["--quiet".to_owned(), limit, "call".to_owned()];
        words.extend(manager.map(Into::into));
        words.push("--".into());
        words.extend(call);
        // busctl's own limit is shorter and produces a message.
        run("busctl", words, self.limit + PAUSE).await.map(drop)
    }

    /// Makes one call; returns the parameters, or the error's name and its parameter.
    async fn call(
        &self,
        method: &str,
        parameters: &Value,
    ) -> Result<Result<Value, (String, String)>, Error> {
        let call =
            json!({ "method": format!("io.systemd.Machine.{method}"), "parameters": parameters });
        let call = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(format!("{call}\0").as_bytes()).await?;
            let mut answer = Vec::new();
            let mut limited = BufReader::new(tokio::io::AsyncReadExt::take(stream, ANSWER as u64));
            limited.read_until(0, &mut answer).await?;
            let whole = answer.strip_suffix(&[0]).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<Value, io::Error>(serde_json::from_slice(whole)?)
        };
        let answer = tokio::time::timeout(self.limit, call).await;
        let answer = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(match answer["error"].as_str() {
            Some(error) => {
                let about = answer["parameters"]["parameter"].as_str().unwrap_or_default();
                Err((error.to_owned(), about.to_owned()))
            }
            None => Ok(answer["parameters"].clone()),
        })
    }
}

/// Returns the output of a program within `limit`. Its standard error is the reason of a failure.
async fn run(program: &str, words: Vec<String>, limit: Duration) -> Result<String, Error> {
    let run = Program::new(program).args(words).time_limit(limit).run_async();
    let Output { status, stdout, stderr, .. } = run.await.map_err(Error::Program)?;
    if status.success() { Ok(stdout) } else { Err(Error::Refused(stderr.trim().to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::{io::AsyncReadExt, net::UnixListener};

    use super::*;

    fn web() -> Machine {
        Machine {
            name: "web".parse().unwrap(),
            uuid: "615aebfc-29b4-4c0f-b886-ca68b5dcc622".into(),
            leader: 7,
            if_indices: vec![],
        }
    }

    /// Serves the replies in order; returns the requests.
    fn served(dir: &Path, answers: Vec<&'static str>) -> (Machined, Arc<Mutex<Vec<Value>>>) {
        let socket = dir.join("io.systemd.Machine");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(vec![]));
        let kept = Arc::clone(&asked);
        tokio::spawn(async move {
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut call = vec![];
                stream.read_until(0, &mut call).await.unwrap();
                call.pop();
                kept.lock().unwrap().push(serde_json::from_slice(&call).unwrap());
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                // The client closes the connection first.
                let _ = stream.read_u8().await;
            }
        });
        (Machined { socket, limit: Duration::from_secs(60) }, asked)
    }

    const DONE: &str = "{\"parameters\":{}}\0";
    const EXISTS: &str = "{\"error\":\"io.systemd.Machine.MachineExists\"}\0";

    #[tokio::test(flavor = "current_thread")]
    async fn machine_is_registered_and_unregistered() {
        let dir = tempfile::tempdir().unwrap();
        let gone = "{\"error\":\"io.systemd.Machine.NoSuchMachine\"}\0";
        let (machined, asked) = served(dir.path(), vec![DONE, DONE, gone]);
        machined.register(&web(), Path::new("/run/c")).await.unwrap();
        machined.unregister(&web()).await.unwrap();
        machined.unregister(&web()).await.unwrap();
        let asked = asked.lock().unwrap();
        assert_eq!(asked[0]["method"], "io.systemd.Machine.Register");
        assert_eq!(asked[0]["parameters"]["controlAddress"], "/run/c");
        assert_eq!(asked[1]["method"], "io.systemd.Machine.Unregister");
        assert_eq!(asked[1]["parameters"], json!({ "name": "web" }));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn older_machined_gets_no_control_address() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = "{\"error\":\"org.varlink.service.InvalidParameter\",\
                       \"parameters\":{\"parameter\":\"controlAddress\"}}\0";
        let (machined, asked) = served(dir.path(), vec![unknown, DONE]);
        machined.register(&web(), Path::new("/run/c")).await.unwrap();
        assert!(asked.lock().unwrap()[1]["parameters"]["controlAddress"].is_null());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_own_registration_is_replaced() {
        let ours =
            "{\"parameters\":{\"service\":\"qvm\",\"id\":\"615aebfc29b44c0fb886ca68b5dcc622\"}}\0";
        let dir = tempfile::tempdir().unwrap();
        let gone = "{\"error\":\"io.systemd.Machine.NoSuchMachine\"}\0";
        let (machined, asked) =
            served(dir.path(), vec![EXISTS, ours, DONE, EXISTS, gone, EXISTS, ours, DONE, DONE]);
        machined.register(&web(), Path::new("/run/c")).await.unwrap();
        let methods: Vec<Value> =
            asked.lock().unwrap().iter().map(|a| a["method"].clone()).collect();
        // The machine may be listed for a moment, or end by itself.
        let again = ["Register", "List", "Unregister"];
        let expected = [&again[..], &["Register", "List"], &again, &["Register"]].concat();
        let expected: Vec<Value> =
            expected.iter().map(|method| json!(format!("io.systemd.Machine.{method}"))).collect();
        assert_eq!(methods, expected);

        let dir = tempfile::tempdir().unwrap();
        let theirs = "{\"parameters\":{\"service\":\"systemd-nspawn\",\"id\":\"00\"}}\0";
        let (machined, _) = served(dir.path(), vec![EXISTS, theirs]);
        let error = machined.register(&web(), Path::new("/run/c")).await.unwrap_err();
        assert_eq!(error.to_string(), "another machine has the name `web`");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn invalid_reply_is_an_error() {
        for answer in ["", "\0", "{\0", "{}", "[]\0x"] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("s");
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let machined = Machined { socket, limit: Duration::from_secs(60) };
            let result = machined.register(&web(), Path::new("/run/c")).await;
            // `[]` is a reply without an error.
            assert_eq!(result.is_ok(), answer == "[]\0x", "{answer:?}: {result:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silent_machined_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let machined = Machined { socket, limit: Duration::from_millis(10) };
        let error = machined.unregister(&web()).await.unwrap_err();
        assert!(matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut));
    }
}
