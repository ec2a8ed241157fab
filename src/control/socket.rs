//! The server's end of a connection below zlink: bounded calls, and replies written in one step.

use serde::Serialize;
use std::os::fd::OwnedFd;
use tokio::net::UnixStream;
use zlink::{
    Connection, Result,
    connection::{
        ReadConnection,
        socket::{ReadHalf, ReadResult, Socket, WriteHalf},
    },
    tokio::unix::Stream,
};

/// The largest call, in bytes. zlink's own limit is 100 MB.
pub(super) const MAX_CALL: usize = 1 << 20;

type Raw = <Stream as Socket>::ReadHalf;

/// The incoming calls.
pub(super) type Calls = ReadConnection<Bounded>;

/// The outgoing replies.
#[derive(Debug)]
pub(super) struct Replies(<Stream as Socket>::WriteHalf);

/// Returns both directions of an accepted connection.
pub(super) fn open(stream: UnixStream) -> Result<(Calls, Replies)> {
    let (calls, replies) = Connection::new(Peer(Stream::try_from(stream)?)).split();
    Ok((calls, Replies(replies.into_write_half())))
}

impl Replies {
    /// Sends a message with its descriptors. It is serialized here in one step: zlink's writer
    /// starts again for every 256 bytes of growth, which takes minutes for the output of `Exec`.
    pub(super) async fn send(&mut self, message: &impl Serialize, fds: &[OwnedFd]) -> Result<()> {
        let mut bytes = serde_json::to_vec(message)?;
        bytes.push(0);
        self.0.write(&bytes, fds, None).await
    }
}

#[derive(Debug)]
struct Peer(Stream);

impl Socket for Peer {
    type ReadHalf = Bounded;
    type WriteHalf = <Stream as Socket>::WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (Bounded, Self::WriteHalf) {
        let (socket, writer) = self.0.split();
        (Bounded { socket, unfinished: 0 }, writer)
    }
}

/// A reader that fails if a message is too large.
#[derive(Debug)]
pub(super) struct Bounded {
    socket: Raw,
    /// The size of the incomplete message, in bytes.
    unfinished: usize,
}

impl ReadHalf for Bounded {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<ReadResult> {
        let mut read = self.socket.read(buffer).await?;
        // No method accepts descriptors, and a client must not exhaust those of the supervisor.
        drop(read.take_fds());
        let bytes = &buffer[..read.bytes_read()];
        self.unfinished = match bytes.iter().rposition(|byte| *byte == 0) {
            Some(end) => bytes.len() - end - 1,
            None => self.unfinished + bytes.len(),
        };
        if self.unfinished > MAX_CALL {
            return Err(zlink::Error::BufferOverflow);
        }
        Ok(read)
    }
}
