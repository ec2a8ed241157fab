//! Requests of the command line to a guest, through its supervisor.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::{Client, Error},
    types::Executed,
};

/// The additional time for the reply to `Exec` after the limit of the command.
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

    /// Runs a command of the guest agent and returns its reply.
    ///
    /// # Errors
    /// See [`Error`]; `Guest` if the agent returns an error.
    pub async fn agent(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, Error> {
        #[derive(Debug, Deserialize)]
        struct Reply {
            #[serde(default)]
            result: Value,
        }
        let parameters = json!({
            "command": command, "arguments": arguments, "timeoutSec": limit.as_secs(),
        });
        let (reply, _): (Reply, _) =
            self.call("io.qvm.Vm.Agent", parameters, limit + AGENT).await?;
        Ok(reply.result)
    }

    /// Freezes the guest's file systems until [`Self::thaw`] or for `thaw_after`; returns their
    /// number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn freeze(&mut self, thaw_after: Duration) -> Result<u64, Error> {
        let parameters = json!({ "thawAfterSec": thaw_after.as_secs() });
        let limit = thaw_after + AGENT;
        let (reply, _): (Filesystems, _) = self.call("io.qvm.Vm.Freeze", parameters, limit).await?;
        Ok(reply.filesystems)
    }

    /// Thaws the file systems; returns their number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn thaw(&mut self) -> Result<u64, Error> {
        let (reply, _): (Filesystems, _) =
            self.call("io.qvm.Vm.Thaw", json!({}), 2 * AGENT).await?;
        Ok(reply.filesystems)
    }
}
