//! What a guest may put on the wire, as a program of classic BPF that the kernel runs on every frame that leaves a tap.
//!
//! Always: only the NIC's own MAC address as source, in ARP as well. Where the NIC has an address, of that family only:
//! - IPv4: that address; 0.0.0.0 to ask a DHCP server, and in ARP to probe for that address (RFC 5227, 2.1);
//! - IPv6: that address; any whose interface identifier is made of the MAC (RFC 4291, appendix A), which nobody else's is: the
//!   link-local one and those of SLAAC; `::` before it has one. A neighbour is told of no other (RFC 4861, 4.4), and probed for no
//!   other (RFC 4862, 5.4.2);
//! - nothing but IPv4, IPv6, ARP and RARP, which QEMU itself announces a guest by: in anything else an address could be wrapped.
//!
//! The kernel has taken the outer VLAN tag off before it asks, and the program ends with "pass" by itself where it reads beyond
//! the frame (`bpf_prog_run` of classic BPF returns 0, and that is `TC_ACT_OK`): the length is looked at before every load.

pub mod filters;

use std::net::IpAddr;

pub use crate::sys::bpf::Instruction;
use crate::sys::bpf::{
    A_TO_X, ADD, ADD_X, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, KEEP, LOAD_BYTE, LOAD_BYTE_AT_X,
    LOAD_HALF, LOAD_HALF_AT_X, LOAD_KEPT, LOAD_LENGTH, LOAD_WORD, LOAD_WORD_AT_X, Label, Program,
    RETURN, SET_A, SET_X, SHIFT_LEFT, SUBTRACT_X, X_HEADER_LENGTH,
};
use crate::value::{Cidr, MacAddr};

/// What the kernel does with a frame (linux/pkt_cls.h).
type Verdict = u32;
/// A number that a protocol has (IANA).
type Number = u32;

/// `TC_ACT_OK`: the frame goes on.
pub const PASS: Verdict = 0;
/// `TC_ACT_SHOT`: it is dropped.
pub const DROP: Verdict = 2;

/// Where things are in a frame without VLAN tag.
mod at {
    type At = u32;

    pub(crate) const SOURCE: At = 6;
    pub(crate) const PROTOCOL: At = 12;
    pub(crate) const ARP: At = 14;
    pub(crate) const ARP_SENDER: At = 22;
    pub(crate) const ARP_SENDER_IP: At = 28;
    pub(crate) const ARP_TARGET_IP: At = 38;
    pub(crate) const ARP_END: At = 42;
    pub(crate) const IPV4: At = 14;
    pub(crate) const IPV4_FRAGMENT: At = 20;
    pub(crate) const IPV4_PROTOCOL: At = 23;
    pub(crate) const IPV4_SOURCE: At = 26;
    pub(crate) const IPV4_END: At = 34;
    pub(crate) const IPV6_NEXT: At = 20;
    pub(crate) const IPV6_SOURCE: At = 22;
    pub(crate) const IPV6_END: At = 54;
    /// From the beginning of a neighbour solicitation or advertisement.
    pub(crate) const ND_TARGET: At = 8;
    pub(crate) const ND_END: At = 24;
}

const IPV4: Number = 0x0800;
const ARP: Number = 0x0806;
const RARP: Number = 0x8035;
const IPV6: Number = 0x86dd;
const UDP: Number = 17;
const FRAGMENT: Number = 44;
const ICMPV6: Number = 58;
/// Hop-by-hop options, routing, destination options: what neighbour discovery can hide behind (RFC 8200, 4).
const EXTENSIONS: [u32; 3] = [0, 43, 60];
/// How many of them, and of fragment headers, a packet may have before what it carries: RFC 8200, 4.1 recommends one of each.
const MOST_EXTENSIONS: usize = 5;
const SOLICITATION: Number = 135;
const ADVERTISEMENT: Number = 136;

/// The program for a NIC.
pub fn program(mac: MacAddr, ip: Option<Cidr>) -> Vec<Instruction> {
    let mut p = Program::default();
    let [a, b, c, d, e, f] = mac.octets();
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, 0, e, f]));
    p.need(at::ARP);
    p.is_or_drop(LOAD_WORD, at::SOURCE, high);
    p.is_or_drop(LOAD_HALF, at::SOURCE + 4, low);
    p.of_protocol(ARP, |p| {
        p.arp(high, low);
        if let Some(IpAddr::V4(own)) = ip.map(Cidr::address) {
            p.arp_addresses(own.to_bits());
        }
        p.end(PASS);
    });
    p.of_protocol(RARP, |p| {
        p.arp(high, low);
        p.end(PASS);
    });
    match ip.map(Cidr::address) {
        None => {
            p.end(PASS);
            return p.resolved();
        }
        Some(IpAddr::V4(own)) => {
            p.of_protocol(IPV4, |p| p.ipv4(own.to_bits()));
            p.of_protocol(IPV6, |p| p.end(PASS));
        }
        Some(IpAddr::V6(own)) => {
            // RFC 4291, appendix A: ff fe in the middle, and the bit that says whether it is the vendor's own turned round.
            let made =
                [u32::from_be_bytes([a ^ 2, b, c, 0xff]), u32::from_be_bytes([0xfe, d, e, f])];
            p.of_protocol(IPV4, |p| p.end(PASS));
            p.of_protocol(IPV6, |p| p.ipv6(words(own.to_bits()), made));
        }
    }
    p.end(DROP);
    p.resolved()
}

/// An IPv6 address as the four words that are compared.
fn words(bits: u128) -> [u32; 4] {
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

impl Program {
    fn end(&mut self, verdict: Verdict) {
        self.put(RETURN, verdict);
    }

    /// So many bytes of the frame there must be.
    fn need(&mut self, bytes: u32) {
        self.put(LOAD_LENGTH, 0);
        self.unless(IF_AT_LEAST, bytes);
        self.end(DROP);
    }

    /// And so many from X on.
    fn need_at_x(&mut self, bytes: u32) {
        // An extension may claim more bytes than there are, and less than nothing is a very large number.
        self.put(LOAD_LENGTH, 0);
        self.put(SUBTRACT_X, 0);
        self.only_if(IF_ANY_BIT, 0x8000_0000);
        self.end(DROP);
        self.unless(IF_AT_LEAST, bytes);
        self.end(DROP);
    }

    fn is_or_drop(&mut self, load: u16, at: u32, value: u32) {
        self.put(load, at);
        self.unless(IF_EQUAL, value);
        self.end(DROP);
    }

    fn of_protocol(&mut self, protocol: u32, inside: impl FnOnce(&mut Self)) {
        let other = self.label();
        self.put(LOAD_HALF, at::PROTOCOL);
        self.unless(IF_EQUAL, protocol);
        self.go(other);
        inside(self);
        self.here(other);
    }

    /// Goes to `matched` where these words are there; else on.
    fn words(&mut self, load: u16, at: u32, words: &[u32], matched: Label) {
        let other = self.label();
        for (nr, word) in (0..).zip(words) {
            self.put(load, at + 4 * nr);
            self.unless(IF_EQUAL, *word);
            self.go(other);
        }
        self.go(matched);
        self.here(other);
    }

    /// Ethernet and IPv4 by ARP (RFC 826), from the NIC's own address.
    fn arp(&mut self, high: u32, low: u32) {
        self.need(at::ARP_END);
        self.is_or_drop(LOAD_WORD, at::ARP, 0x0001_0800);
        self.is_or_drop(LOAD_HALF, at::ARP + 4, 0x0604);
        self.is_or_drop(LOAD_WORD, at::ARP_SENDER, high);
        self.is_or_drop(LOAD_HALF, at::ARP_SENDER + 4, low);
    }

    fn arp_addresses(&mut self, own: u32) {
        let good = self.label();
        self.words(LOAD_WORD, at::ARP_SENDER_IP, &[own], good);
        self.is_or_drop(LOAD_WORD, at::ARP_SENDER_IP, 0);
        self.is_or_drop(LOAD_WORD, at::ARP_TARGET_IP, own);
        self.here(good);
    }

    fn ipv4(&mut self, own: u32) {
        self.need(at::IPV4_END);
        self.put(LOAD_WORD, at::IPV4_SOURCE);
        self.only_if(IF_EQUAL, own);
        self.end(PASS);
        self.unless(IF_EQUAL, 0);
        self.end(DROP);
        // Without an address, only DHCP: from port 68 to port 67 (RFC 2131, 4.1), in one piece.
        self.is_or_drop(LOAD_BYTE, at::IPV4_PROTOCOL, UDP);
        self.put(LOAD_HALF, at::IPV4_FRAGMENT);
        self.only_if(IF_ANY_BIT, 0x3fff);
        self.end(DROP);
        self.put(X_HEADER_LENGTH, at::IPV4);
        self.need_at_x(at::IPV4 + 4);
        self.is_or_drop(LOAD_HALF_AT_X, at::IPV4, 68);
        self.is_or_drop(LOAD_HALF_AT_X, at::IPV4 + 2, 67);
        self.end(PASS);
    }

    fn ipv6(&mut self, own: [u32; 4], made: [u32; 2]) {
        let [next_header, has_source] = [0, 1];
        let (good, has_none) = (self.label(), self.label());
        self.need(at::IPV6_END);
        self.words(LOAD_WORD, at::IPV6_SOURCE, &own, good);
        self.words(LOAD_WORD, at::IPV6_SOURCE + 8, &made, good);
        self.words(LOAD_WORD, at::IPV6_SOURCE, &[0; 4], has_none);
        self.end(DROP);
        self.here(good);
        // Any number but 0: what was loaded last may be one, and is not relied on.
        self.put(LOAD_LENGTH, 0);
        self.here(has_none);
        // By way of `has_none`, A is the last word compared: 0.
        self.put(KEEP, has_source);
        self.put(LOAD_BYTE, at::IPV6_NEXT);
        self.put(KEEP, next_header);
        self.put(SET_X, at::IPV6_END);
        let (icmp, neighbour) = (self.label(), self.label());
        for _ in 0..MOST_EXTENSIONS {
            let (extension, fragment, next) = (self.label(), self.label(), self.label());
            self.put(LOAD_KEPT, next_header);
            self.only_if(IF_EQUAL, ICMPV6);
            self.go(icmp);
            self.only_if(IF_EQUAL, FRAGMENT);
            self.go(fragment);
            for header in EXTENSIONS {
                self.only_if(IF_EQUAL, header);
                self.go(extension);
            }
            self.end(PASS);
            // Only the first fragment says what it carries; it has to have all headers (RFC 7112).
            self.here(fragment);
            self.need_at_x(8);
            self.put(LOAD_HALF_AT_X, 2);
            self.only_if(IF_ANY_BIT, 0xfff8);
            self.end(PASS);
            self.put(LOAD_BYTE_AT_X, 0);
            self.put(KEEP, next_header);
            self.put(SET_A, 8);
            self.put(ADD_X, 0);
            self.put(A_TO_X, 0);
            self.go(next);
            self.here(extension);
            self.need_at_x(8);
            self.put(LOAD_BYTE_AT_X, 0);
            self.put(KEEP, next_header);
            self.put(LOAD_BYTE_AT_X, 1);
            self.put(ADD, 1);
            self.put(SHIFT_LEFT, 3);
            self.put(ADD_X, 0);
            self.put(A_TO_X, 0);
            self.here(next);
        }
        self.end(DROP);
        self.here(icmp);
        self.need_at_x(4);
        self.put(LOAD_BYTE_AT_X, 0);
        self.only_if(IF_EQUAL, ADVERTISEMENT);
        self.go(neighbour);
        self.unless(IF_EQUAL, SOLICITATION);
        self.end(PASS);
        // Whoever has an address may ask for any other's.
        self.put(LOAD_KEPT, has_source);
        self.unless(IF_EQUAL, 0);
        self.end(PASS);
        self.here(neighbour);
        let told = self.label();
        self.need_at_x(at::ND_END);
        self.words(LOAD_WORD_AT_X, at::ND_TARGET, &own, told);
        self.words(LOAD_WORD_AT_X, at::ND_TARGET + 8, &made, told);
        self.end(DROP);
        self.here(told);
        self.end(PASS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::JUMP;

    /// What the kernel asks of a program, and what we ask: forward jumps within it, and one of two verdicts. Which frames get which
    /// is judged by the kernel, in tests/anti_spoof.rs.
    #[test]
    fn every_program_ends_in_a_verdict() {
        for ip in [None, Some("10.0.0.5/24"), Some("2001:db8::5/64")] {
            let program =
                program("52:54:00:61:90:15".parse().unwrap(), ip.map(|ip| ip.parse().unwrap()));
            assert!(program.len() < 1024, "{}", program.len());
            for (nr, instruction) in program.iter().enumerate() {
                let Instruction { code, jump_true, jump_false, k } = *instruction;
                let left = program.len() - nr - 1;
                assert!(usize::from(jump_true.max(jump_false)) < left || left == 0, "{nr}");
                assert!(code != JUMP || (k as usize) < left, "{nr}");
                assert!(code != RETURN || [PASS, DROP].contains(&k), "{nr}");
            }
            assert_eq!(program.last().unwrap().code, RETURN);
        }
    }
}
