//! Whose process is at the other end of a Unix socket: asked of the kernel, which took it down at the connection.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::libc;
use rustix::net::sockopt::socket_peercred;

use crate::value::Peer;

/// How many groups are asked for at first: more than almost any account has (NGROUPS_MAX is 65536).
const GROUPS: usize = 64;

/// The user and all groups of the peer.
///
/// # Errors
/// It is no Unix socket. A kernel older than 4.13 has no SO_PEERGROUPS: the first group is all that is known then.
pub fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = socket_peercred(socket)?;
    let groups = match groups(socket, GROUPS) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => vec![],
        groups => groups?,
    };
    Ok(Peer { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw(), groups })
}

/// SO_PEERGROUPS (socket(7) does not have it; net/core/sock.c, `SO_PEERGROUPS`): with too little room it says how much there has to be.
fn groups(socket: BorrowedFd<'_>, room: usize) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; room];
    let given = size_of::<libc::gid_t>() * room;
    let mut bytes = libc::socklen_t::try_from(given).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `bytes` bytes, which is how large `groups` is, and says how many those were.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let written = bytes as usize / size_of::<libc::gid_t>();
    if done == 0 {
        groups.truncate(written);
        return Ok(groups);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ERANGE) && written > room => {
            self::groups(socket, written)
        }
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixStream};

    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_oneself() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = of(one.as_fd()).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        let mut own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let mut told = peer.groups;
        own.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, own);
    }

    #[test]
    fn what_is_no_unix_socket_has_no_peer() {
        // The kernel knows nobody at the other end of another socket, and says so by errors or by a number that no user has.
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let user = of(tcp.as_fd()).map_or(u32::MAX, |peer| peer.uid);
        assert_eq!(user, u32::MAX);
        assert!(of(std::fs::File::open("/").unwrap().as_fd()).is_err());
    }
}
