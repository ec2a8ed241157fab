//! The commands about who looks at the screen by VNC.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::json;

use crate::{Client, Error};

/// Tells viewers apart that are handed over at the same time.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Client {
    /// Hands QEMU's VNC server a connection; with `trusted` it asks for no password. QEMU needs `-vnc none,password=on`.
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

    /// Sets the password of the VNC server; who is connected stays so.
    ///
    /// # Errors
    /// See [`Error`]; there is no VNC server, or none that asks for a password.
    pub async fn set_vnc_password(&self, password: &str, limit: Duration) -> Result<(), Error> {
        let set = json!({ "protocol": "vnc", "password": password });
        self.raw("set_password", set, limit).await.map(drop)
    }

    /// Whether QEMU itself listens for viewers.
    ///
    /// # Errors
    /// See [`Error`]. One that was built without VNC does not.
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
