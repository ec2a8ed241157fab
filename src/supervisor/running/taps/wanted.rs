//! How the taps of a guest are to be.

use std::collections::BTreeMap;

use crate::{
    net::tap_spec::Tap,
    spec::TapHeal,
    value::{Label, MacAddr},
};

/// How the taps of a guest are to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WantedTaps {
    /// What is done with a tap that is not on its bridge.
    pub(crate) heal: TapHeal,
    /// The taps.
    pub(crate) taps: Vec<Tap>,
    /// The addresses of the NICs for which the VM file has none.
    pub(crate) macs: BTreeMap<Label, MacAddr>,
    /// Nothing is to be examined: the machine is being changed, and a state may be half of a change.
    pub(crate) held: bool,
}
