//! The writer of a connection: lines, with a descriptor if the socket can pass one.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt, Interest},
    net::{UnixStream, unix::OwnedWriteHalf},
};

/// The writer of a connection.
pub(crate) trait Outlet: Send + 'static {
    /// Writes a line, with a descriptor if there is one and the connection can pass it.
    fn send(
        &mut self,
        line: &[u8],
        fd: Option<OwnedFd>,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// Any stream, which carries only bytes.
pub(crate) struct Plain<W>(pub(crate) W);

impl<W: AsyncWrite + Send + Unpin + 'static> Outlet for Plain<W> {
    async fn send(&mut self, line: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        match fd {
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
            None => self.0.write_all(line).await,
        }
    }
}

impl Outlet for OwnedWriteHalf {
    async fn send(&mut self, line: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        let Some(fd) = fd else { return self.write_all(line).await };
        let stream: &UnixStream = self.as_ref();
        let sent = loop {
            stream.writable().await?;
            match stream.try_io(Interest::WRITABLE, || send_with(stream, line, &fd)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => break sent?,
            }
        };
        // The descriptor was sent with the first byte.
        self.write_all(&line[sent..]).await
    }
}

/// unix(7), SCM_RIGHTS.
fn send_with(stream: &UnixStream, line: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let bytes = [io::IoSlice::new(line)];
    Ok(sendmsg(stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?)
}
