//! The server's end of a connection under zlink: what a peer may send is bounded, and what is told it is written in one go.

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

/// The largest call, in bytes: what asks is small. zlink's own bound is 100 MB.
pub(super) const MAX_CALL: usize = 1 << 20;

type Raw = <Stream as Socket>::ReadHalf;

/// Calls come in here.
pub(super) type Calls = ReadConnection<Bounded>;

/// Replies go out here.
#[derive(Debug)]
pub(super) struct Replies(<Stream as Socket>::WriteHalf);

/// Both sides of an accepted connection.
pub(super) fn open(stream: UnixStream) -> Result<(Calls, Replies)> {
    let (calls, replies) = Connection::new(Peer(Stream::try_from(stream)?)).split();
    Ok((calls, Replies(replies.into_write_half())))
}

impl Replies {
    /// Sends a message and the descriptors that go with it. It is serialized here, once: zlink's writer begins
    /// anew for every 256 bytes that it grows by, which takes minutes for what `Exec` may return.
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

/// Fails when a message has become too large.
#[derive(Debug)]
pub(super) struct Bounded {
    socket: Raw,
    /// How many bytes of a message have come that has not come whole.
    unfinished: usize,
}

impl ReadHalf for Bounded {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<ReadResult> {
        let mut read = self.socket.read(buffer).await?;
        // No method takes any, and whoever sends them must not use up ours.
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
