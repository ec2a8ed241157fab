//! What the server needs of the supervisor.

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{Arc, atomic::AtomicBool},
};

use tokio::sync::{broadcast, mpsc};

use super::{
    authorizer::Authorizer,
    types::{Event, Request},
};
use crate::value::Peer;

/// The supervisor's side of the control socket: what `server::serve` needs.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    /// Into the loop.
    pub requests: mpsc::Sender<Request>,
    /// Out of the loop.
    pub events: broadcast::Sender<Event>,
    /// The authorization of requests.
    pub grant: Authorizer,
    /// The supervisor's program is about to be replaced in its process: requests that are not
    /// answered by then are not refused, but lose their connection, and are for the next program.
    pub replaced: Arc<AtomicBool>,
    /// Returns the credentials of the connected client.
    pub peer: fn(BorrowedFd<'_>) -> io::Result<Peer>,
}
