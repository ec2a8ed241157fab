//! Methods for the commands that a supervisor uses.

use std::{os::fd::OwnedFd, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{Client, Error};

/// The name of the descriptor for the migration stream.
const STATE: &str = "qvm-state";

/// The run state in which QEMU refuses `cont`.
const MIGRATION_ENDS: &str = "finish-migrate";
/// The interval of attempts to resume the vCPUs.
const POLL: Duration = Duration::from_millis(10);

/// The status of saving a machine's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Migration {
    /// In progress.
    Active,
    /// Complete.
    Completed,
    /// Failed, with the reason.
    Failed(String),
}

/// The size of the guest's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balloon {
    /// The guest's memory in bytes.
    Actual(u64),
    /// The guest's driver has not started, or there is no balloon.
    Inactive,
}

/// I/O statistics of a block node's device since the start of QEMU (`query-blockstats`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    /// The node.
    pub node: String,
    /// The virtual size in bytes.
    pub size: Option<u64>,
    /// The allocated size in bytes.
    pub allocated: Option<u64>,
    /// Reads: bytes, operations, nanoseconds.
    pub read: [u64; 3],
    /// Writes: bytes, operations, nanoseconds.
    pub written: [u64; 3],
    /// Flushes: operations, nanoseconds.
    pub flushed: [u64; 2],
}

impl Client {
    /// Returns the statistics of every device with a block node.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn blocks(&self, limit: Duration) -> Result<Vec<Block>, Error> {
        let (reply, statistics) = tokio::try_join!(
            self.raw("query-block", json!({}), limit),
            self.raw("query-blockstats", json!({}), limit),
        )?;
        let of = |one: &Value| -> Option<Block> {
            let node = one["node-name"].as_str()?;
            let images = reply.as_array().into_iter().flatten().map(|one| &one["inserted"]);
            let image = images.into_iter().find(|one| one["node-name"] == node);
            let number = |key: &str| one["stats"][key].as_u64().unwrap_or_default();
            Some(Block {
                node: node.to_owned(),
                size: image.and_then(|one| one["image"]["virtual-size"].as_u64()),
                allocated: image.and_then(|one| one["image"]["actual-size"].as_u64()),
                read: ["rd_bytes", "rd_operations", "rd_total_time_ns"].map(number),
                written: ["wr_bytes", "wr_operations", "wr_total_time_ns"].map(number),
                flushed: ["flush_operations", "flush_total_time_ns"].map(number),
            })
        };
        Ok(statistics.as_array().into_iter().flatten().filter_map(of).collect())
    }

    /// Resumes the vCPUs. QEMU refuses that while a canceled or failed migration ends: the end is
    /// awaited.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cont(&self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let mut is_last = false;
        loop {
            let done = self.run(qapi::qmp::cont {}, limit).await.map(drop);
            let is_refused = matches!(done, Err(Error::Refused { .. }));
            if is_last || !is_refused || Instant::now() >= deadline {
                return done;
            }
            // The migration may have ended between both commands: one more attempt. Without a run
            // state the refusal stays the reason.
            match self.query_status(limit).await {
                Ok(state) => is_last = state != MIGRATION_ENDS,
                Err(_) => return done,
            }
            sleep(POLL).await;
        }
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop(&self, limit: Duration) -> Result<(), Error> {
        self.run(qapi::qmp::stop {}, limit).await.map(drop)
    }

    /// Ends QEMU, which flushes its disks first.
    ///
    /// # Errors
    /// See [`Error`]; `Closed` can mean that QEMU exited before its reply was sent.
    pub async fn quit(&self, limit: Duration) -> Result<(), Error> {
        self.run(qapi::qmp::quit {}, limit).await.map(drop)
    }

    /// Presses the ACPI power button.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn powerdown(&self, limit: Duration) -> Result<(), Error> {
        self.run(qapi::qmp::system_powerdown {}, limit).await.map(drop)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn reset(&self, limit: Duration) -> Result<(), Error> {
        self.run(qapi::qmp::system_reset {}, limit).await.map(drop)
    }

    /// Returns the block nodes whose last write failed for lack of space on the host, if the vCPUs
    /// are stopped for that reason.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn full_nodes(&self, limit: Duration) -> Result<Vec<String>, Error> {
        if self.query_status(limit).await? != "io-error" {
            return Ok(vec![]);
        }
        let reply = self.raw("query-block", json!({}), limit).await?;
        let full = |one: &&Value| one["io-status"] == "nospace";
        let node = |one: &Value| Some(one["inserted"]["node-name"].as_str()?.to_owned());
        Ok(reply.as_array().into_iter().flatten().filter(full).filter_map(node).collect())
    }

    /// Returns QEMU's run state, such as `running`, `paused` or `shutdown`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_status(&self, limit: Duration) -> Result<String, Error> {
        // Not typed by the schema, so that a newer state is no error.
        let value = self.raw("query-status", json!({}), limit).await?;
        Ok(value["status"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Sets the action at a reboot of the guest: `reset` or `shutdown`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_reboot_action(&self, action: &str, limit: Duration) -> Result<(), Error> {
        self.raw("set-action", json!({ "reboot": action }), limit).await.map(drop)
    }

    /// Starts sending the machine's state to a connected socket or a pipe, without a rate limit
    /// (QEMU's `migrate`).
    ///
    /// # Errors
    /// See [`Error`]; some devices cannot be saved.
    pub async fn migrate(&self, to: OwnedFd, limit: Duration) -> Result<(), Error> {
        // The default limit is 128 MiB/s.
        let parameters = json!({ "max-bandwidth": 1_u64 << 40 });
        self.raw("migrate-set-parameters", parameters, limit).await?;
        self.pass_fd(STATE, to, limit).await?;
        self.raw("migrate", json!({ "uri": format!("fd:{STATE}") }), limit).await.map(drop)
    }

    /// Returns the status of the migration.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn migration(&self, limit: Duration) -> Result<Migration, Error> {
        let value = self.raw("query-migrate", json!({}), limit).await?;
        Ok(match value["status"].as_str() {
            Some("completed") => Migration::Completed,
            Some(word @ ("failed" | "cancelled" | "cancelling")) => {
                Migration::Failed(value["error-desc"].as_str().unwrap_or(word).to_owned())
            }
            _ => Migration::Active,
        })
    }

    /// Cancels the migration.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_migration(&self, limit: Duration) -> Result<(), Error> {
        self.raw("migrate_cancel", json!({}), limit).await.map(drop)
    }

    /// Returns the thread IDs of the vCPUs, in their order.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn vcpu_threads(&self, limit: Duration) -> Result<Vec<u32>, Error> {
        let value = self.raw("query-cpus-fast", json!({}), limit).await?;
        let number = |cpu: &Value, key: &str| u32::try_from(cpu[key].as_u64()?).ok();
        let mut threads: Vec<(u32, u32)> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|cpu| Some((number(cpu, "cpu-index")?, number(cpu, "thread-id")?)))
            .collect();
        threads.sort_unstable();
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    /// Returns the connection table of the user-mode network as text: no other command returns it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn user_network(&self, limit: Duration) -> Result<String, Error> {
        let command = json!({ "command-line": "info usernet" });
        let value = self.raw("human-monitor-command", command, limit).await?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// Sets the balloon's target, in bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn balloon(&self, bytes: u64, limit: Duration) -> Result<(), Error> {
        self.raw("balloon", json!({ "value": bytes }), limit).await.map(drop)
    }

    /// What the guest has by its balloon.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn query_balloon(&self, limit: Duration) -> Result<Balloon, Error> {
        match self.raw("query-balloon", json!({}), limit).await {
            Ok(value) => Ok(value["actual"].as_u64().map_or(Balloon::Inactive, Balloon::Actual)),
            Err(Error::Refused { class, .. }) if class == "DeviceNotActive" => {
                Ok(Balloon::Inactive)
            }
            Err(error) => Err(error),
        }
    }
}
