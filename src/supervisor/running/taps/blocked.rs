//! Bridges that do not pass the frames of a tap: those that are down, and those with an MTU below
//! the guest's.

use std::collections::BTreeMap;

use tracing::warn;

use super::wanted::WantedTaps;
use crate::{
    net::link::{self, Links},
    value::{IfName, Note},
};

/// The reasons by tap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blocked(BTreeMap<IfName, Vec<Note>>);

impl Blocked {
    /// Updates the reasons, and logs new ones. A missing bridge is not included: its tap is
    /// detached.
    ///
    /// # Errors
    /// The kernel refuses the query.
    pub(crate) async fn examine(
        &mut self,
        wanted: &WantedTaps,
        links: &Links,
    ) -> Result<(), link::Error> {
        let mut now = BTreeMap::new();
        for tap in &wanted.taps {
            let bridge = links.find(&tap.bridge).await?;
            let notes = bridge.map(|bridge| tap.bridge_notes(bridge.up, bridge.mtu));
            let notes = notes.unwrap_or_default();
            let known = self.0.get(&tap.name);
            for note in &notes {
                if known.is_none_or(|known| !known.contains(note)) {
                    warn!("{note}");
                }
            }
            if !notes.is_empty() {
                now.insert(tap.name.clone(), notes);
            }
        }
        self.0 = now;
        Ok(())
    }

    /// Whether the bridge blocks frames of this tap.
    pub(crate) fn has(&self, tap: &IfName) -> bool {
        self.0.contains_key(tap)
    }

    /// Whether no tap is blocked.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the same taps are affected.
    pub(crate) fn has_those_of(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }

    /// Returns the notes for the status.
    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> + '_ {
        self.0.values().flatten().cloned()
    }
}
