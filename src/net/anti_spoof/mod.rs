//! The anti-spoofing rules of a NIC, as a classic BPF program that the kernel runs on every frame
//! from the guest.
//!
//! Allowed in all cases is only the NIC's MAC address as source, also in ARP. If the NIC has an
//! address, only addresses of its family:
//! - IPv4: that address; 0.0.0.0 for DHCP requests, and in ARP to probe for that address (RFC 5227,
//!   2.1);
//! - IPv6: that address; any address whose interface identifier is derived from the MAC address
//!   (RFC 4291, appendix A), such as link-local and SLAAC addresses; `::` before an address is
//!   assigned. Neighbour advertisements (RFC 4861, 4.4) and probes (RFC 4862, 5.4.2) only for these
//!   addresses;
//! - no other protocols except ARP and RARP, with which QEMU announces a guest: they could
//!   encapsulate any address.
//!
//! The kernel removes the outer VLAN tag before running the program. A load beyond the end of the
//! frame ends the program with 0 (`bpf_prog_run` of classic BPF), which is `TC_ACT_OK`, so the
//! length is checked before every load.

pub mod filters;

use std::net::IpAddr;

pub use crate::sys::bpf::Instruction;
use crate::sys::bpf::{
    A_TO_X, ADD, ADD_X, IF_ANY_BIT, IF_AT_LEAST, IF_EQUAL, KEEP, LOAD_BYTE, LOAD_BYTE_AT_X,
    LOAD_HALF, LOAD_HALF_AT_X, LOAD_KEPT, LOAD_LENGTH, LOAD_WORD, LOAD_WORD_AT_X, Label, Program,
    RETURN, SET_A, SET_X, SHIFT_LEFT, SUBTRACT_X, X_HEADER_LENGTH,
};
use crate::value::{Cidr, MacAddr};

/// The action for a frame (linux/pkt_cls.h).
type Verdict = u32;
/// A protocol number (IANA).
type Number = u32;

/// `TC_ACT_OK`: pass the frame.
pub const PASS: Verdict = 0;
/// `TC_ACT_SHOT`: drop the frame.
pub const DROP: Verdict = 2;

/// Offsets in a frame without VLAN tag, in bytes.
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
    /// Relative to a neighbour solicitation or advertisement.
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
/// Hop-by-hop options, routing, destination options: extension headers that can precede neighbour
/// discovery (RFC 8200, 4).
const EXTENSIONS: [u32; 3] = [0, 43, 60];
/// The maximum number of extension and fragment headers; RFC 8200, 4.1 recommends at most one of
/// each type.
const MOST_EXTENSIONS: usize = 5;
const SOLICITATION: Number = 135;
const ADVERTISEMENT: Number = 136;

/// Returns the program for a NIC.
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
            // RFC 4291, appendix A: insert ff fe in the middle and invert the universal/local bit.
            let made =
                [u32::from_be_bytes([a ^ 2, b, c, 0xff]), u32::from_be_bytes([0xfe, d, e, f])];
            p.of_protocol(IPV4, |p| p.end(PASS));
            p.of_protocol(IPV6, |p| p.ipv6(words(own.to_bits()), made));
        }
    }
    p.end(DROP);
    p.resolved()
}

/// Returns an IPv6 address as four words to compare.
fn words(bits: u128) -> [u32; 4] {
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

impl Program {
    fn end(&mut self, verdict: Verdict) {
        self.put(RETURN, verdict);
    }

    /// Drops frames shorter than `bytes`.
    fn need(&mut self, bytes: u32) {
        self.put(LOAD_LENGTH, 0);
        self.unless(IF_AT_LEAST, bytes);
        self.end(DROP);
    }

    /// Drops frames with fewer than `bytes` bytes from X on.
    fn need_at_x(&mut self, bytes: u32) {
        // An extension can claim more bytes than the frame has; a negative difference is a large
        // unsigned number.
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

    /// Jumps to `matched` if the frame has these words; otherwise continues.
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

    /// ARP for Ethernet and IPv4 (RFC 826), with the NIC's address as sender.
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
        // Without an address, only unfragmented DHCP from port 68 to port 67 (RFC 2131, 4.1).
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
        // Any number except 0; the last loaded value may be 0.
        self.put(LOAD_LENGTH, 0);
        self.here(has_none);
        // After `has_none`, A is the last compared word: 0.
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
            // Only the first fragment identifies the payload; it must contain all headers (RFC
            // 7112).
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
        // A host with an address may solicit any other.
        self.put(LOAD_KEPT, has_source);
        self.unless(IF_EQUAL, 0);
        self.end(PASS);
        self.here(neighbour);
        let target = self.label();
        self.need_at_x(at::ND_END);
        self.words(LOAD_WORD_AT_X, at::ND_TARGET, &own, target);
        self.words(LOAD_WORD_AT_X, at::ND_TARGET + 8, &made, target);
        self.end(DROP);
        self.here(target);
        self.end(PASS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bpf::JUMP;

    /// Checks the kernel's rules, forward jumps within the program, and that each path ends in one
    /// of two verdicts. tests/it/net/anti_spoof.rs tests with the kernel which frames pass.
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
