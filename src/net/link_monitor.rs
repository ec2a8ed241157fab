//! Watches interfaces with a netlink socket of the group RTNLGRP_LINK (rtnetlink(7)). A socket
//! filter drops messages about other interfaces in the kernel, so that they cause no wakeup.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    libc::{self, sock_filter, sock_fprog, socklen_t},
    sys::socket::{MsgFlags, NetlinkAddr, bind, recv},
};
use tokio::io::unix::AsyncFd;

use crate::sys::readable_fd::readable;

use crate::{
    sys::bpf::{IF_EQUAL, Instruction, LOAD_BYTE, LOAD_HALF, LOAD_WORD, Program, RETURN},
    value::IfName,
};

type Groups = u32;
type At = u32;
type Verdict = u32;

/// The bit of the group of `RTM_NEWLINK` and `RTM_DELLINK`.
const LINKS: Groups = 1;
/// The offset of the interface index: in `struct ifinfomsg` after `struct nlmsghdr`.
const INDEX: At = 16 + 4;
/// The offset of the first attribute, which is the name for every link and bridge port
/// (rtnetlink.c, br_netlink.c).
const FIRST: At = 16 + 16;
/// Pass the whole message.
const ALL: Verdict = u32::MAX;

/// A socket that watches interfaces.
#[derive(Debug)]
pub struct LinkWatch {
    fd: AsyncFd<Arc<OwnedFd>>,
}

impl LinkWatch {
    /// Subscribes with this netlink socket, initially to no interface. Requires a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        attach(&fd, &program(&[], &[]))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        let fd = readable(Arc::new(fd))?;
        Ok(Self { fd })
    }

    /// Watches interfaces with these indexes, and interfaces with these names whatever their index.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn only(&self, indexes: &[u32], names: &[IfName]) -> io::Result<()> {
        attach(self.fd.get_ref(), &program(indexes, names))
    }

    /// Waits for messages. Their content is not returned, since messages can be lost.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut changed = false;
            // The content is not needed, so messages are truncated.
            let mut buffer = [0; 64];
            loop {
                match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if changed {
                return Ok(());
            }
        }
    }
}

/// Returns the socket filter. BPF loads big-endian values, but netlink messages have the host's
/// byte order.
fn program(indexes: &[u32], names: &[IfName]) -> Vec<Instruction> {
    let mut program = Program::default();
    program.put(LOAD_WORD, INDEX);
    for index in indexes {
        program.only_if(IF_EQUAL, u32::from_be_bytes(index.to_ne_bytes()));
        program.put(RETURN, ALL);
    }
    if !names.is_empty() {
        // With another first attribute the filter passes too many messages.
        let kind = u16::from_be_bytes(libc::IFLA_IFNAME.to_ne_bytes());
        program.put(LOAD_HALF, FIRST + 2);
        program.unless(IF_EQUAL, kind.into());
        program.put(RETURN, ALL);
    }
    for name in names {
        let next_name = program.label();
        let mut require = |load, at, value| {
            program.put(load, at);
            program.unless(IF_EQUAL, value);
            program.go(next_name);
        };
        // With the final NUL; padding after the attribute is not compared.
        let bytes = [name.as_str().as_bytes(), &[0]].concat();
        // The length is compared first: a load beyond the end of the message ends the program.
        let length = (4 + bytes.len() as u16).to_ne_bytes();
        require(LOAD_HALF, FIRST, u16::from_be_bytes(length).into());
        for (part, at) in bytes.chunks(4).zip((FIRST + 4..).step_by(4)) {
            if let [a, b, c, d] = *part {
                require(LOAD_WORD, at, u32::from_be_bytes([a, b, c, d]));
            } else {
                (at..).zip(part).for_each(|(at, byte)| require(LOAD_BYTE, at, (*byte).into()));
            }
        }
        program.put(RETURN, ALL);
        program.here(next_name);
    }
    program.put(RETURN, 0);
    program.resolved()
}

fn attach(fd: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let filter = |one: &Instruction| sock_filter {
        code: one.code,
        jt: one.jump_true,
        jf: one.jump_false,
        k: one.k,
    };
    let program: Vec<sock_filter> = program.iter().map(filter).collect();
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the descriptor is open; the kernel copies `len` instructions, which outlive the call.
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
