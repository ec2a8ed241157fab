//! Bridges that do not pass the frames of a tap: those that are down, and those with an MTU below the guest's.

use std::collections::BTreeMap;

use tracing::warn;

use super::wanted::WantedTaps;
use crate::{
    net::link::{self, Links},
    value::{IfName, Note},
};

/// By tap: why frames do not pass its bridge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blocked(BTreeMap<IfName, Vec<Note>>);

impl Blocked {
    /// Finds out how it is now, and logs what is new. A bridge that does not exist has nothing here: its tap is off the bridge.
    ///
    /// # Errors
    /// The kernel cannot be asked.
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

    /// Whether frames of this tap do not pass.
    pub(crate) fn has(&self, tap: &IfName) -> bool {
        self.0.contains_key(tap)
    }

    /// Whether frames of all taps pass.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the same taps are affected.
    pub(crate) fn has_those_of(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }

    /// What an operator should know.
    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> + '_ {
        self.0.values().flatten().cloned()
    }
}
