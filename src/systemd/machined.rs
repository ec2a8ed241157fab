//! systemd-machined's list of machines: putting a VM in, and taking it out.

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

/// How often it is tried, and the pause between: a machine that was taken out is still there for a moment.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// The largest answer that is read.
const ANSWER: usize = 1 << 20;

/// Why machined does not have the VM, or still has it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another machine has the name.
    #[error("another machine is called `{0}`")]
    Taken(String),
    /// It refused.
    #[error("systemd-machined refused: {0}")]
    Refused(String),
    /// It did not answer.
    #[error("systemd-machined cannot be asked")]
    Io(#[from] io::Error),
    /// `machinectl` or `busctl` did not run to its end.
    #[error("systemd-machined cannot be asked")]
    Program(#[source] program::Error),
}

/// The way to machined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machined {
    /// Its varlink socket; where there is none, D-Bus.
    pub socket: PathBuf,
    /// How long an answer may take; on demand machined is started first.
    pub limit: Duration,
}

impl Machined {
    /// Puts the VM in. What an earlier supervisor has put in for it is replaced.
    ///
    /// # Errors
    /// There is no machined, it does not take it, or the name is another machine's.
    pub async fn register(&self, machine: &Machine, control: &Path) -> Result<(), Error> {
        if !self.socket.exists() {
            return self.register_by_dbus(machine).await;
        }
        let name = json!({ "name": machine.name.as_str() });
        let mut parameters = machine.parameters(Some(control));
        for _ in 0..TRIES {
            match self.call("Register", &parameters).await? {
                Ok(_) => return Ok(()),
                Err((error, _)) if error.ends_with(".MachineExists") => {
                    match self.call("List", &name).await? {
                        Ok(listed) if !machine.is_listed(&listed) => {
                            return Err(Error::Taken(machine.name.to_string()));
                        }
                        Ok(_) => drop(self.call("Unregister", &name).await?),
                        // It has gone meanwhile.
                        Err(_) => {}
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                // One that knows no `controlAddress` yet.
                Err((error, about))
                    if error.ends_with(".InvalidParameter") && about == "controlAddress" =>
                {
                    parameters = machine.parameters(None);
                }
                Err((error, _)) => return Err(Error::Refused(error)),
            }
        }
        Err(Error::Refused("again and again".into()))
    }

    /// Takes the VM out, if it is in.
    ///
    /// # Errors
    /// As of [`Self::register`].
    pub async fn unregister(&self, machine: &Machine) -> Result<(), Error> {
        if !self.socket.exists() {
            return self.unregister_by_dbus(machine).await;
        }
        let name = json!({ "name": machine.name.as_str() });
        match self.call("Unregister", &name).await? {
            Err((error, _)) if !error.ends_with(".NoSuchMachine") => Err(Error::Refused(error)),
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
        // busctl itself ends first, with a message.
        run("busctl", words, self.limit + PAUSE).await.map(drop)
    }

    /// One call: its parameters, or the error's name and the parameter that it is about.
    async fn call(
        &self,
        method: &str,
        parameters: &Value,
    ) -> Result<Result<Value, (String, String)>, Error> {
        let call =
            json!({ "method": format!("io.systemd.Machine.{method}"), "parameters": parameters });
        let asked = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(format!("{call}\0").as_bytes()).await?;
            let mut answer = Vec::new();
            let mut limited = BufReader::new(tokio::io::AsyncReadExt::take(stream, ANSWER as u64));
            limited.read_until(0, &mut answer).await?;
            let whole = answer.strip_suffix(&[0]).ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok::<Value, io::Error>(serde_json::from_slice(whole)?)
        };
        let answer = tokio::time::timeout(self.limit, asked).await;
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

/// Returns what a program prints within `limit`. Its standard error is the reason of a refusal.
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

    /// Serves the answers in their order; what it was asked.
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
                // It does not hang up first.
                let _ = stream.read_u8().await;
            }
        });
        (Machined { socket, limit: Duration::from_secs(60) }, asked)
    }

    const DONE: &str = "{\"parameters\":{}}\0";
    const EXISTS: &str = "{\"error\":\"io.systemd.Machine.MachineExists\"}\0";

    #[tokio::test(flavor = "current_thread")]
    async fn a_machine_is_put_in_and_taken_out() {
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
    async fn one_that_knows_no_control_address_is_told_none() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = "{\"error\":\"org.varlink.service.InvalidParameter\",\"parameters\":{\"parameter\":\"controlAddress\"}}\0";
        let (machined, asked) = served(dir.path(), vec![unknown, DONE]);
        machined.register(&web(), Path::new("/run/c")).await.unwrap();
        assert!(asked.lock().unwrap()[1]["parameters"]["controlAddress"].is_null());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_earlier_supervisor_s_is_replaced_and_another_s_is_not() {
        let ours =
            "{\"parameters\":{\"service\":\"qvm\",\"id\":\"615aebfc29b44c0fb886ca68b5dcc622\"}}\0";
        let dir = tempfile::tempdir().unwrap();
        let gone = "{\"error\":\"io.systemd.Machine.NoSuchMachine\"}\0";
        let (machined, asked) =
            served(dir.path(), vec![EXISTS, ours, DONE, EXISTS, gone, EXISTS, ours, DONE, DONE]);
        machined.register(&web(), Path::new("/run/c")).await.unwrap();
        let methods: Vec<Value> =
            asked.lock().unwrap().iter().map(|a| a["method"].clone()).collect();
        // Also where it is still there for a moment, or goes by itself.
        let again = ["Register", "List", "Unregister"];
        let expected = [&again[..], &["Register", "List"], &again, &["Register"]].concat();
        let expected: Vec<Value> =
            expected.iter().map(|method| json!(format!("io.systemd.Machine.{method}"))).collect();
        assert_eq!(methods, expected);

        let dir = tempfile::tempdir().unwrap();
        let theirs = "{\"parameters\":{\"service\":\"systemd-nspawn\",\"id\":\"00\"}}\0";
        let (machined, _) = served(dir.path(), vec![EXISTS, theirs]);
        let error = machined.register(&web(), Path::new("/run/c")).await.unwrap_err();
        assert_eq!(error.to_string(), "another machine is called `web`");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nonsense_is_an_error() {
        for answer in ["", "\0", "{\0", "{}", "[]\0x"] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("s");
            let listener = UnixListener::bind(&socket).unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let machined = Machined { socket, limit: Duration::from_secs(60) };
            let told = machined.register(&web(), Path::new("/run/c")).await;
            // `[]` has no error in it, but is an answer.
            assert_eq!(told.is_ok(), answer == "[]\0x", "{answer:?}: {told:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_is_not_waited_for_forever() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let machined = Machined { socket, limit: Duration::from_millis(10) };
        let error = machined.unregister(&web()).await.unwrap_err();
        assert!(matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut));
    }
}
