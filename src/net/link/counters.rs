//! Traffic counters of the host's interfaces.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::{
    error::Error,
    links::{Links, to_io},
};

/// The counters of an interface since its creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received traffic.
    pub received: Traffic,
    /// Sent traffic.
    pub sent: Traffic,
}

/// The counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Dropped packets.
    pub dropped: u64,
    /// Damaged packets.
    pub errors: u64,
}

impl Counters {
    /// Returns the counters as seen by the guest: the host receives at the tap what the guest has
    /// sent.
    pub fn of_the_guest(self) -> Self {
        Self { received: self.sent, sent: self.received }
    }
}

impl Links {
    /// Returns the counters of all interfaces, by name.
    ///
    /// # Errors
    /// The kernel does not respond.
    pub async fn counters(&self) -> Result<BTreeMap<String, Counters>, Error> {
        let all: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| Error::Ask { what: "the interfaces".into(), source: to_io(e) })?;
        let of = |message: LinkMessage| {
            let (mut name, mut found) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(is) => name = Some(is),
                    LinkAttribute::Stats64(s) => {
                        let traffic = |bytes, packets, dropped, errors| Traffic {
                            bytes,
                            packets,
                            dropped,
                            errors,
                        };
                        found = Some(Counters {
                            received: traffic(s.rx_bytes, s.rx_packets, s.rx_dropped, s.rx_errors),
                            sent: traffic(s.tx_bytes, s.tx_packets, s.tx_dropped, s.tx_errors),
                        });
                    }
                    _ => {}
                }
            }
            Some((name?, found?))
        };
        Ok(all.into_iter().filter_map(of).collect())
    }
}
