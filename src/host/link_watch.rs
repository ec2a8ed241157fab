//! Waking when an interface changes: a netlink socket of the group RTNLGRP_LINK (rtnetlink(7)) on which the kernel itself, by a
//! socket filter, drops what is said of other interfaces. However many come and go, nobody wakes for them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{self, sock_filter, sock_fprog, socklen_t},
    sys::socket::{MsgFlags, NetlinkAddr, bind, recv},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::value::IfName;

type Groups = u32;
type At = u32;
type Verdict = u32;

/// The group of `RTM_NEWLINK` and `RTM_DELLINK`, as a bit.
const LINKS: Groups = 1;
/// Where a message has the interface's number: behind `struct nlmsghdr`, in `struct ifinfomsg`.
const INDEX: At = 16 + 4;
/// Where its first attribute is. The kernel has the name there, of every link and bridge port (rtnetlink.c, br_netlink.c).
const FIRST: At = 16 + 16;
/// The whole message.
const ALL: Verdict = u32::MAX;

/// The socket.
#[derive(Debug)]
pub struct LinkWatch {
    fd: AsyncFd<OwnedFd>,
}

impl LinkWatch {
    /// Begins to listen by this netlink socket, for nothing yet. Needs a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        attach(&fd, &program(&[], &[]))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        // SAFETY: an `OwnedFd` stays open, and the same, as long as the `AsyncFd` that owns it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd })
    }

    /// Listens for what is said of interfaces with these numbers, and with these names, whatever their numbers.
    ///
    /// # Errors
    /// The kernel does not take the filter.
    pub fn only(&self, indexes: &[u32], names: &[IfName]) -> io::Result<()> {
        attach(self.fd.get_ref(), &program(indexes, names))
    }

    /// Waits until something was said; how much and what is not told, for it may have been too much to be kept.
    ///
    /// # Errors
    /// The socket is no good any more.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut said = false;
            // Only that there was something matters: the rest of a message is cut off.
            let mut buffer = [0; 64];
            loop {
                match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(_) | Err(Errno::ENOBUFS) => said = true,
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if said {
                return Ok(());
            }
        }
    }
}

/// The filter. What BPF loads it takes for big-endian, and a netlink message is not.
fn program(indexes: &[u32], names: &[IfName]) -> Vec<sock_filter> {
    let load = |code, at| statement(libc::BPF_LD | libc::BPF_ABS | code, at);
    let (word, half, byte) = (libc::BPF_W, libc::BPF_H, libc::BPF_B);
    let mut program = vec![load(word, INDEX)];
    for index in indexes {
        program.push(equal(u32::from_be_bytes(index.to_ne_bytes()), 0, 1));
        program.push(statement(libc::BPF_RET, ALL));
    }
    if !names.is_empty() {
        // Should a kernel have another attribute first, then it is better to wake too often.
        let kind = u16::from_be_bytes(libc::IFLA_IFNAME.to_ne_bytes());
        program.push(load(half, FIRST + 2));
        program.push(equal(kind.into(), 1, 0));
        program.push(statement(libc::BPF_RET, ALL));
    }
    for name in names {
        // With the NUL that ends it; what comes behind an attribute is of no account.
        let bytes = [name.as_str().as_bytes(), &[0]].concat();
        let mut at = FIRST + 4;
        let mut loads = vec![];
        for part in bytes.chunks(4) {
            match *part {
                [a, b, c, d] => loads.push((word, at, u32::from_be_bytes([a, b, c, d]))),
                _ => loads.extend((at..).zip(part).map(|(at, is)| (byte, at, u32::from(*is)))),
            }
            at += 4;
        }
        // A load beyond the end would end the program: the name that is there has to be as long.
        let length = (4 + bytes.len() as u16).to_ne_bytes();
        loads.insert(0, (half, FIRST, u16::from_be_bytes(length).into()));
        let lines = 2 * loads.len() as u8;
        for (nr, (size, at, is)) in (0_u8..).zip(loads) {
            program.push(load(size, at));
            // On a mismatch past the rest of this name, and its `ret`.
            program.push(equal(is, 0, lines - 2 * nr - 1));
        }
        program.push(statement(libc::BPF_RET, ALL));
    }
    program.push(statement(libc::BPF_RET, 0));
    program
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn equal(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt, jf, k }
}

fn attach(fd: &impl AsFd, program: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the descriptor is open; the kernel copies `len` instructions that outlive the call, and changes none of them.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<sock_fprog>() as socklen_t,
        )
    };
    Errno::result(done).map(drop).map_err(Into::into)
}
