//! Reads the host's neighbour table (arp(7), ip-neighbour(8)): the addresses seen for a hardware
//! address.

use std::{io, net::IpAddr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use crate::{
    sys::tasks::Tasks,
    value::{IfName, MacAddr},
};

/// Returns the addresses seen for `mac` on an interface, sorted; none if the interface does not
/// exist.
///
/// # Errors
/// The kernel does not respond.
pub async fn addresses(interface: &IfName, mac: MacAddr) -> io::Result<Vec<IpAddr>> {
    let Ok(index) = nix::net::if_::if_nametoindex(interface.as_str()) else {
        return Ok(Vec::new());
    };
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let mut driver = Tasks::default();
    driver.spawn(connection);
    let all = handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
    drop(driver);
    let all = all.map_err(io::Error::other)?;
    let here = all.into_iter().filter(|one| one.header.ifindex == index);
    let mut found: Vec<IpAddr> = here.filter_map(|one| seen_at(&one, mac)).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn seen_at(one: &NeighbourMessage, mac: MacAddr) -> Option<IpAddr> {
    let is_its = one.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::LinkLayerAddress(bytes) if *bytes == mac.octets())
    });
    let address = one.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some((*address).into())
        }
        _ => None,
    });
    address.filter(|_| is_its)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_confirmed_neighbours_count() {
        let mac: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        let message = |bytes: &[u8], address| {
            let mut message = NeighbourMessage::default();
            message.attributes = vec![
                NeighbourAttribute::Destination(address),
                NeighbourAttribute::LinkLayerAddress(bytes.to_vec()),
            ];
            message
        };
        let address = || NeighbourAddress::Inet([192, 168, 97, 15].into());
        let seen = seen_at(&message(&mac.octets(), address()), mac);
        assert_eq!(seen, Some("192.168.97.15".parse().unwrap()));
        assert_eq!(seen_at(&message(&[2; 6], address()), mac), None);
        let other = NeighbourAddress::Other(vec![1]);
        assert_eq!(seen_at(&message(&mac.octets(), other), mac), None);
    }
}
