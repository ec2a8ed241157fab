//! What the command line asks of a guest, through its supervisor.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::{Client, Error},
    types::Executed,
};

/// How much longer than the command itself the answer to `Exec` may take.
const AGENT: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
struct Filesystems {
    filesystems: u64,
}

impl Client {
    /// Runs a command in the guest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exec(&mut self, argv: Vec<String>, timeout: Duration) -> Result<Executed, Error> {
        let parameters = json!({ "argv": argv, "timeoutSec": timeout.as_secs() });
        let (done, _) = self.call("io.qvm.Vm.Exec", parameters, timeout + AGENT).await?;
        Ok(done)
    }

    /// Has the guest agent do one of its own commands; what it answers.
    ///
    /// # Errors
    /// See [`Error`]; `Guest` where the agent says no.
    pub async fn agent(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, Error> {
        #[derive(Debug, Deserialize)]
        struct Told {
            #[serde(default)]
            result: Value,
        }
        let parameters = json!({
            "command": command, "arguments": arguments, "timeoutSec": limit.as_secs(),
        });
        let (told, _): (Told, _) = self.call("io.qvm.Vm.Agent", parameters, limit + AGENT).await?;
        Ok(told.result)
    }

    /// Freezes the guest's file systems until [`Self::thaw`], or for so long; how many those are.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn freeze(&mut self, thaw_after: Duration) -> Result<u64, Error> {
        let parameters = json!({ "thawAfterSec": thaw_after.as_secs() });
        let limit = thaw_after + AGENT;
        let (told, _): (Filesystems, _) = self.call("io.qvm.Vm.Freeze", parameters, limit).await?;
        Ok(told.filesystems)
    }

    /// Thaws them; how many were frozen.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn thaw(&mut self) -> Result<u64, Error> {
        let (told, _): (Filesystems, _) = self.call("io.qvm.Vm.Thaw", json!({}), 2 * AGENT).await?;
        Ok(told.filesystems)
    }
}
