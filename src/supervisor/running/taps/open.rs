//! From a tap's plan to a tap on its bridge, filtered before it is there.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::time::{Instant, sleep};

use super::unfiltered::Unfiltered;
use crate::{
    net::{
        anti_spoof::filters::{self, Filters},
        broker::Network,
        link::{self, Links},
        tap,
        tap_spec::Tap,
    },
    spec::Vm,
    value::{Explain, IfName, Label, MacAddr},
};
use std::collections::BTreeMap;

/// Why a guest is not given a tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device.
    #[error("cannot make the tap `{tap}` ({at})")]
    Tap {
        /// Its name.
        tap: IfName,
        /// Where the VM file names its bridge.
        at: String,
        /// Why.
        source: tap::Error,
    },
    /// The bridge.
    #[error("cannot attach the tap `{tap}` ({at})")]
    Link {
        /// The tap's name.
        tap: IfName,
        /// Where the VM file names the bridge.
        at: String,
        /// Why.
        source: link::Error,
    },
    /// The filter on the frames that leave the tap.
    #[error(transparent)]
    Filter(#[from] Unfiltered),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Tap { source, .. } => Some(source),
            Self::Link { source, .. } => Some(source),
            Self::Filter(error) => Some(error),
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::Filter(_))
    }
}

/// How long a QEMU that has gone may keep its tap, and how often it is tried meanwhile.
const EXIT_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// Makes a tap and puts it on its bridge. Returns the tap, and why frames do not pass the bridge.
pub(crate) async fn open(
    network: &Network,
    vm: &Vm,
    tap: &Tap,
    macs: &BTreeMap<Label, MacAddr>,
) -> Result<(OwnedFd, Vec<String>), Error> {
    let at = vm.at(&format!("nic.{}.bridge", tap.nic));
    let links = Links::open(network.connect().await);
    let failed = |source| Error::Link { tap: tap.name.clone(), at: at.clone(), source };
    let links = links.map_err(failed)?;
    let refused = |source| Error::Tap { tap: tap.name.clone(), at: at.clone(), source };
    let tun = network.tun().await.map_err(|source| tap::Error::new(&tap.name, source));
    let tun = tun.map_err(refused)?;
    let begun = Instant::now();
    let open = loop {
        let source = match tap::open(&tap.name, tun.try_clone()) {
            Ok(open) => break open,
            Err(source) => source,
        };
        // Whose it is makes the message; that this cannot be found out does not matter.
        let found = match source.taken() {
            Some(name) => links.find(name).await.ok().flatten(),
            None => None,
        };
        // The last QEMU's, which is going: the kernel closes what it had in steps.
        if found.as_ref().is_some_and(|link| link.alias.as_ref() == Some(&tap.alias))
            && begun.elapsed() < EXIT_LIMIT
        {
            sleep(POLL).await;
            continue;
        }
        let source = match found {
            Some(link) if link.multi_queue => source.of_multi_queue(),
            Some(link) => source.of(link.described()),
            None => source,
        };
        return Err(refused(source));
    };
    // Before it is on its bridge: not one frame passes unseen.
    if let Err(source) = filter(network, tap, macs).await
        && let Some(refused) = Unfiltered::of(vm, tap, source)
    {
        return Err(refused.into());
    }
    let notes = attach(&links, tap, &at).await?;
    Ok((open, notes))
}

/// Puts a tap that is there on its bridge. Returns why frames do not pass the bridge.
pub(crate) async fn attach(links: &Links, tap: &Tap, at: &str) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Link { tap: tap.name.clone(), at: at.to_owned(), source };
    let attached = links.attach(tap).await.map_err(failed)?;
    Ok(tap.bridge_notes(attached.bridge_up, attached.bridge_mtu))
}

/// Has what leaves a tap filtered, or not, as its NIC says.
///
/// # Errors
/// See [`anti_spoof::Error`].
pub(crate) async fn filter(
    network: &Network,
    tap: &Tap,
    macs: &BTreeMap<Label, MacAddr>,
) -> Result<(), filters::Error> {
    let filters = Filters::open(network.connect().await)?;
    match tap.filter(macs) {
        Some(program) => filters.set(&tap.name, &program).await,
        None => filters.clear(&tap.name).await,
    }
}
