//! The interface of the supervisor for the control server.

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

/// The supervisor's side of the control socket, as `server::serve` uses it.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    /// The queue of requests to the supervisor's loop.
    pub requests: mpsc::Sender<Request>,
    /// The events of the supervisor's loop.
    pub events: broadcast::Sender<Arc<Event>>,
    /// The authorization of requests.
    pub authorizer: Authorizer,
    /// The program of the supervisor is about to be replaced: pending requests are not refused, but
    /// lose their connection, so that clients repeat them to the next program.
    pub replaced: Arc<AtomicBool>,
    /// Returns the credentials of the connected client.
    pub peer: fn(BorrowedFd<'_>) -> io::Result<Peer>,
}
