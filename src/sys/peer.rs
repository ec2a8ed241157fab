//! The credentials of the peer of a Unix socket, which the kernel recorded at connection time.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::libc;
use rustix::net::sockopt::socket_peercred;

use crate::value::Peer;

/// The initial buffer size in groups: more than almost any account has (NGROUPS_MAX is 65536).
const GROUPS: usize = 64;

/// Returns the UID and all GIDs of the peer.
///
/// # Errors
/// The descriptor is not a Unix socket. On kernels before 4.13 without SO_PEERGROUPS only the
/// primary group is returned.
pub fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let credentials = socket_peercred(socket)?;
    let groups = match groups(socket, GROUPS) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => vec![],
        groups => groups?,
    };
    Ok(Peer { uid: credentials.uid.as_raw(), gid: credentials.gid.as_raw(), groups })
}

/// SO_PEERGROUPS (not in socket(7); net/core/sock.c): if the buffer is too small, the kernel
/// returns the required size.
fn groups(socket: BorrowedFd<'_>, room: usize) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; room];
    let given = size_of::<libc::gid_t>() * room;
    let mut bytes = libc::socklen_t::try_from(given).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `bytes` bytes, the size of `groups`, and returns the number
    // of bytes written.
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
    fn peer_of_a_socketpair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = of(one.as_fd()).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(peer.gid, nix::unistd::getegid().as_raw());
        let mut own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let mut groups = peer.groups;
        own.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, own);
    }

    #[test]
    fn other_sockets_have_no_peer() {
        // For other sockets the kernel returns an error or an invalid UID.
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let user = of(tcp.as_fd()).map_or(u32::MAX, |peer| peer.uid);
        assert_eq!(user, u32::MAX);
        assert!(of(std::fs::File::open("/").unwrap().as_fd()).is_err());
    }
}
