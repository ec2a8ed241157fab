//! The wanted state of a guest's taps.

use std::collections::BTreeMap;

use crate::{
    net::tap_spec::Tap,
    spec::TapHeal,
    value::{Label, MacAddr},
};

/// The wanted state of a guest's taps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WantedTaps {
    /// The handling of a detached tap.
    pub(crate) heal: TapHeal,
    /// The taps.
    pub(crate) taps: Vec<Tap>,
    /// The addresses of NICs without one in the VM file.
    pub(crate) macs: BTreeMap<Label, MacAddr>,
    /// Whether the examination is suspended because the machine is being changed.
    pub(crate) held: bool,
}
