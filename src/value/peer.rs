//! `Peer`: whose process is at the other end of a Unix socket.

/// The other end's process, as the kernel took it down when it connected (SO_PEERCRED, SO_PEERGROUPS; unix(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its further groups.
    pub groups: Vec<u32>,
}
