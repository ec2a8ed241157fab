//! Creates a tap, sets its filter and attaches it to its bridge.

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
    value::{ErrorCode, Explain, IfName, Label, MacAddr, Note},
};
use std::collections::BTreeMap;

/// Errors of the creation of a tap.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device cannot be created.
    #[error("cannot create the tap `{tap}` ({at})")]
    Tap {
        /// The tap's name.
        tap: IfName,
        /// The location of the bridge in the VM file.
        at: String,
        /// The cause.
        source: tap::Error,
    },
    /// The tap cannot be attached to its bridge.
    #[error("cannot attach the tap `{tap}` ({at})")]
    Link {
        /// The tap's name.
        tap: IfName,
        /// The location of the bridge in the VM file.
        at: String,
        /// The cause.
        source: link::Error,
    },
    /// The filter cannot be set.
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

    fn own_code(&self) -> Option<ErrorCode> {
        match self {
            Self::Tap { .. } | Self::Link { .. } | Self::Filter(..) => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Link { .. } | Self::Filter(_))
    }
}

/// How long the tap of an exited QEMU may exist, and the interval of attempts.
const EXIT_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// Creates a tap and attaches it to its bridge. Returns the tap, and why its bridge blocks frames.
pub(crate) async fn open(
    network: &Network,
    vm: &Vm,
    tap: &Tap,
    macs: &BTreeMap<Label, MacAddr>,
) -> Result<(OwnedFd, Vec<Note>), Error> {
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
        // The owner is only for the message; an error is ignored.
        let found = match source.taken() {
            Some(name) => links.find(name).await.ok().flatten(),
            None => None,
        };
        // The tap of an exiting QEMU, whose descriptors the kernel is closing.
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
    // Set before the attachment, so that every frame is filtered.
    if let Err(source) = filter(network, tap, macs).await
        && let Some(refused) = Unfiltered::of(vm, tap, source)
    {
        return Err(refused.into());
    }
    let notes = attach(&links, tap, &at).await?;
    Ok((open, notes))
}

/// Attaches an existing tap to its bridge. Returns why its bridge blocks frames.
pub(crate) async fn attach(links: &Links, tap: &Tap, at: &str) -> Result<Vec<Note>, Error> {
    let failed = |source| Error::Link { tap: tap.name.clone(), at: at.to_owned(), source };
    let attached = links.attach(tap).await.map_err(failed)?;
    Ok(tap.bridge_notes(attached.bridge_up, attached.bridge_mtu))
}

/// Sets or removes the filter of a tap, as configured.
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
