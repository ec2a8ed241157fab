//! The commands for VNC clients.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::json;

use crate::{Client, Error};

/// Gives concurrently passed connections different names.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Client {
    /// Passes a connection to QEMU's VNC server; `trusted` skips the password. QEMU requires `-vnc
    /// none,password=on`.
    ///
    /// # Errors
    /// See [`Error`]; there is no VNC server.
    pub async fn add_viewer(
        &self,
        viewer: OwnedFd,
        trusted: bool,
        limit: Duration,
    ) -> Result<(), Error> {
        let name = format!("viewer-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.pass_fd(&name, viewer, limit).await?;
        let who = json!({ "protocol": "vnc", "fdname": name, "skipauth": trusted });
        let added = self.raw("add_client", who, limit).await;
        if added.is_err() {
            let _ = self.close_fd(&name, limit).await;
        }
        added.map(drop)
    }

    /// Sets the password of the VNC server; existing connections remain.
    ///
    /// # Errors
    /// See [`Error`]; there is no VNC server, or it has no password authentication.
    pub async fn set_vnc_password(&self, password: &str, limit: Duration) -> Result<(), Error> {
        let set = json!({ "protocol": "vnc", "password": password });
        self.raw("set_password", set, limit).await.map(drop)
    }

    /// Returns true if QEMU itself listens for VNC clients.
    ///
    /// # Errors
    /// See [`Error`]. Returns false for a QEMU without VNC.
    pub async fn listens_for_viewers(&self, limit: Duration) -> Result<bool, Error> {
        let servers = match self.raw("query-vnc-servers", json!({}), limit).await {
            Err(Error::Refused { class, .. }) if class == "CommandNotFound" => return Ok(false),
            servers => servers?,
        };
        let listens =
            |server: &serde_json::Value| server["server"].as_array().is_some_and(|l| !l.is_empty());
        Ok(servers.as_array().into_iter().flatten().any(listens))
    }
}
