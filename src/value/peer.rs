//! `Peer`: the credentials of the process at the other end of a Unix socket.

/// The credentials at the time of connection (SO_PEERCRED, SO_PEERGROUPS; unix(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The effective UID.
    pub uid: u32,
    /// The effective GID.
    pub gid: u32,
    /// The supplementary GIDs.
    pub groups: Vec<u32>,
}
