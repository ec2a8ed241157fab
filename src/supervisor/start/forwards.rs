//! Whether QEMU will get the ports of the host that it is to listen on.

use super::launch::Error;
use crate::{
    net::port,
    spec::{Link, Nic, Vm},
};

/// Checks the ports of a NIC; `shut_off` as of [`super::Settings::shut_off`].
pub(crate) fn check_forwards(shut_off: bool, vm: &Vm, nic: &Nic) -> Result<(), Error> {
    let Link::User { forward } = &nic.link else { return Ok(()) };
    port::sockets(shut_off)?;
    let at = || vm.at(&format!("nic.{}.forward", nic.name));
    for forward in forward {
        port::check(forward).map_err(|source| Error::Port { at: at(), source })?;
    }
    Ok(())
}
