//! The addresses of a guest and their source: the guest agent, else the VM file, else the host's
//! neighbour table.

use std::net::IpAddr;

use super::inventory::STATUS_LIMIT;
use crate::{
    control::{
        client::{Client, Error},
        types::Address,
    },
    net::neighbour,
    spec::{self, Link},
    store::layout::Layout,
    value::VmName,
};

/// Returns the addresses of the first source that knows any; empty if no source does.
///
/// # Errors
/// The VM is not running, or its supervisor does not answer.
pub async fn addresses(layout: &Layout, name: &VmName) -> Result<Vec<Address>, Error> {
    let socket = layout.vm(name).control_socket();
    let status = Client::connect(&socket).await?.status(STATUS_LIMIT).await?;
    let guest = Client::connect(&socket).await?.guest().await?;
    let mut addresses = guest.addresses;
    // Routable addresses first; otherwise the guest's own order.
    addresses.sort_by_key(|address| is_local(&address.address));
    if addresses.iter().any(|address| !is_local(&address.address)) {
        return Ok(addresses);
    }
    if let Some((address, _)) = status.ip.as_deref().and_then(|ip| ip.split_once('/')) {
        return Ok(vec![address_from(address, "vm-file")]);
    }
    let vm = spec::load_early(&layout.vm_file(name)).ok();
    let bridge = vm.as_ref().and_then(|vm| match &vm.nics.first()?.link {
        Link::Bridge { bridge, .. } => Some(bridge),
        Link::User { .. } => None,
    });
    let mac = status.mac.as_deref().and_then(|mac| mac.parse().ok());
    if let (Some(bridge), Some(mac)) = (bridge, mac) {
        let seen = neighbour::addresses(bridge, mac).await.map_err(Error::Io)?;
        if !seen.is_empty() {
            return Ok(seen
                .iter()
                .map(|address| address_from(&address.to_string(), "neighbour"))
                .collect());
        }
    }
    Ok(addresses)
}

fn address_from(address: &str, source: &str) -> Address {
    Address { address: address.to_owned(), interface: None, source: source.to_owned() }
}

/// Whether an address is only valid on the guest's link or in the guest.
fn is_local(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local() || address.is_loopback(),
        Ok(IpAddr::V6(address)) => address.is_unicast_link_local() || address.is_loopback(),
        Err(_) => true,
    }
}
