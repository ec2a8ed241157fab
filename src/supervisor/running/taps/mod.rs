//! The taps of a guest that runs: what leaves them is filtered, and one that has lost its bridge is told of, and put back.

pub(crate) mod blocked;
pub(crate) mod keeper;
pub mod open;
pub mod unfiltered;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tokio::{
    sync::{Mutex, watch},
    task::AbortHandle,
};

use self::keeper::Keeper;
use crate::supervisor::Supervisor;
use crate::{
    net::tap_spec::{self, Tap},
    spec::TapHeal,
    value::{Label, MacAddr},
};

/// The addresses of the NICs that none is written for.
type Macs = BTreeMap<Label, MacAddr>;

/// The taps' keeper.
#[derive(Debug)]
pub(crate) struct Taps {
    task: AbortHandle,
    wanted: watch::Sender<Wanted>,
    /// Held while something is looked at.
    looks: Arc<Mutex<()>>,
    notes: Vec<String>,
}

impl Drop for Taps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How it all shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    heal: TapHeal,
    taps: Vec<Tap>,
    macs: Macs,
    /// The machine is being changed: what is found may be half of a change.
    held: bool,
}

/// What has become of the taps.
#[derive(Debug)]
pub(crate) struct Told {
    notes: Vec<String>,
    events: Vec<(&'static str, Value)>,
}

impl Supervisor {
    /// Begins to keep the taps of a QEMU that has come to run.
    ///
    /// `notes` are the keeper's until it has seen the taps itself: what was found when they were attached.
    pub(crate) fn keep_taps(&mut self, notes: Vec<String>) {
        let (wanted, want) = watch::channel(self.wanted_taps());
        let looks = Arc::new(Mutex::new(()));
        let (facts, generation) = (self.facts.clone(), self.generation);
        let network = self.settings.network.clone();
        let keeper = Keeper::new(network, want, looks.clone(), facts, generation);
        let task = self.tasks.spawn(keeper.keep());
        self.taps = Some(Taps { task, wanted, looks, notes });
    }

    /// The machine has changed, or begins to be.
    pub(crate) fn retell_taps(&mut self) {
        let wanted = self.wanted_taps();
        if let Some(taps) = &self.taps {
            taps.wanted.send_if_modified(|now| {
                let differs = *now != wanted;
                *now = wanted;
                differs
            });
        }
    }

    /// What is to be waited for before taps are changed: nobody looks at them then.
    pub(crate) fn taps_let_go(&self) -> impl Future<Output = ()> + use<> {
        let looks = self.taps.as_ref().map(|taps| taps.looks.clone());
        async move {
            if let Some(looks) = looks {
                drop(looks.lock().await);
            }
        }
    }

    pub(crate) fn hear_taps(&mut self, told: Told) {
        if let Some(taps) = &mut self.taps {
            taps.notes = told.notes;
        }
        for (name, data) in told.events {
            self.publish(name, data);
        }
    }

    pub(crate) fn tap_notes(&self) -> Vec<String> {
        self.taps.as_ref().map(|taps| taps.notes.clone()).unwrap_or_default()
    }

    fn wanted_taps(&self) -> Wanted {
        let taps = tap_spec::running(&self.settings.name, &self.running);
        Wanted {
            heal: self.vm.tap_heal,
            macs: match taps.is_empty() {
                true => Macs::new(),
                false => self.files.identity.as_ref().map(|it| it.macs.clone()).unwrap_or_default(),
            },
            taps,
            // Without the addresses a filter would be another.
            held: self.applying.is_some() || !self.files.is_read,
        }
    }
}
