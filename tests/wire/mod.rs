//! Frames as bytes, and a socket that receives the frames of an interface.

#![allow(dead_code)] // No test binary uses all of it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

pub(crate) type Mac = [u8; 6];

pub(crate) const EVERYBODY: Mac = [0xff; 6];

/// Receives every frame that arrives at one interface.
pub(crate) struct Ear {
    socket: OwnedFd,
    index: usize,
}

impl Ear {
    pub(crate) fn new(interface: &str) -> Self {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .unwrap();
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(20, 0)).unwrap();
        let index = nix::net::if_::if_nametoindex(interface).unwrap() as usize;
        Self { socket, index }
    }

    /// Returns the next frame, without its outer VLAN tag.
    pub(crate) fn next(&self) -> Vec<u8> {
        loop {
            let mut buffer = vec![0; 4096];
            let (length, from) =
                recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer).unwrap();
            let from = from.unwrap();
            // 4 is PACKET_OUTGOING of packet(7).
            if from.ifindex() == self.index && from.pkttype() != 4 {
                buffer.truncate(length);
                return buffer;
            }
        }
    }

    /// Returns all frames before one that satisfies the condition.
    pub(crate) fn until(&self, last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut seen = vec![];
        loop {
            let frame = self.next();
            if last(&frame) {
                return seen;
            }
            seen.push(frame);
        }
    }
}

pub(crate) fn ethernet(to: Mac, from: Mac, protocol: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &protocol.to_be_bytes(), payload].concat()
}

/// Returns `ethernet` with a VLAN tag before its protocol.
pub(crate) fn tagged(frame: &[u8], tag: u16, vlan: u16) -> Vec<u8> {
    [&frame[..12], &tag.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

pub(crate) fn arp(op: u16, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, op as u8];
    [&head[..], &sender.0, &sender.1, &target.0, &target.1].concat()
}

pub(crate) fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    [&head[..], &from, &to, payload].concat()
}

pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    [from, to, length, 0].into_iter().flat_map(u16::to_be_bytes).chain(payload.to_vec()).collect()
}

pub(crate) fn ipv6(from: &str, to: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to): (Ipv6Addr, Ipv6Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let length = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], next, 255];
    [&head[..], &from.octets(), &to.octets(), payload].concat()
}

/// A neighbor solicitation (135) or advertisement (136).
pub(crate) fn neighbour(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat()
}

pub(crate) fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}
