//! Looking after the taps beside the loop: asleep until the kernel says something of one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, watch};
use tracing::{info, warn};

use super::{Told, Wanted, open};
use crate::{
    host::{
        anti_spoof,
        link::{self, Links},
        link_watch::LinkWatch,
        network::Network,
    },
    plan::tap::Tap,
    run::fact::Fact,
    spec::TapHeal,
    value::{IfName, chain},
};

/// A tap that goes is QEMU's last word, or its NIC was plugged out: that is learnt within this, or else it was taken away.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Who takes a tap off its bridge again and again shall not keep us busy.
const HEAL_EVERY: Duration = Duration::from_secs(1);

/// The task.
pub(super) struct Keeper {
    network: Network,
    want: watch::Receiver<Wanted>,
    looks: Arc<Mutex<()>>,
    facts: mpsc::Sender<Fact>,
    generation: u64,
    /// What could not be filtered.
    unfiltered: Vec<String>,
    /// What is not on its bridge, and why.
    lost: BTreeMap<IfName, String>,
    /// When something was put back last.
    healed: BTreeMap<IfName, Instant>,
}

impl Keeper {
    pub(super) fn new(
        network: Network,
        want: watch::Receiver<Wanted>,
        looks: Arc<Mutex<()>>,
        facts: mpsc::Sender<Fact>,
        generation: u64,
    ) -> Self {
        Self {
            network,
            want,
            looks,
            facts,
            generation,
            unfiltered: vec![],
            lost: BTreeMap::new(),
            healed: BTreeMap::new(),
        }
    }

    pub(super) async fn keep(mut self) {
        let mut ear = None;
        loop {
            let wanted = self.want.borrow_and_update().clone();
            if wanted.heal == TapHeal::Off {
                ear = None;
            }
            if !wanted.held {
                self.filter(&wanted).await;
                if ear.is_none() && wanted.heal != TapHeal::Off && !wanted.taps.is_empty() {
                    match self.network.route().and_then(LinkWatch::open) {
                        Ok(open) => ear = Some(open),
                        Err(error) => warn!("`tapHeal` has no effect: {error}"),
                    }
                }
            }
            if !self.watch(&wanted, ear.as_mut()).await {
                return;
            }
        }
    }

    async fn filter(&mut self, wanted: &Wanted) {
        let mut notes = vec![];
        for tap in &wanted.taps {
            if let Err(error) = open::filter(&self.network, tap, &wanted.macs).await
                && tap.filter(&wanted.macs).is_some()
                && !matches!(error, anti_spoof::Error::Gone(_))
            {
                notes.push(format!(
                    "`antiSpoof` has no effect on the tap `{}`: {}",
                    tap.name,
                    chain(&error)
                ));
            }
        }
        if notes != self.unfiltered {
            notes.iter().for_each(|note| warn!("{note}"));
            self.unfiltered = notes;
            self.tell(vec![]).await;
        }
    }

    /// Looks after the taps until something else is wanted of them; `false` when nothing ever will be.
    async fn watch(&mut self, wanted: &Wanted, ear: Option<&mut LinkWatch>) -> bool {
        let Some(ear) = ear.filter(|_| !wanted.held && wanted.heal != TapHeal::Off) else {
            if wanted.heal == TapHeal::Off && !self.lost.is_empty() {
                self.lost.clear();
                self.tell(vec![]).await;
            }
            return self.want.changed().await.is_ok();
        };
        loop {
            // Listen first, look then: nothing can change unheard in between.
            if let Err(error) = self.listen(wanted, ear) {
                warn!("`tapHeal` has no effect: {error}");
                return self.want.changed().await.is_ok();
            }
            let before = self.lost.clone();
            let events = {
                let looks = self.looks.clone();
                let _looking = looks.lock().await;
                // Held since: it is looked at when the change is done.
                if self.want.has_changed().is_ok_and(|changed| !changed) {
                    self.look(wanted).await
                } else {
                    vec![]
                }
            };
            if self.want.has_changed().unwrap_or(true) {
                self.tell(events).await;
                return self.want.changed().await.is_ok();
            }
            if !events.is_empty() || before != self.lost {
                self.tell(events).await;
            }
            if !before.keys().eq(self.lost.keys()) {
                continue;
            }
            tokio::select! {
                changed = self.want.changed() => return changed.is_ok(),
                heard = ear.next() => if let Err(error) = heard {
                    warn!("`tapHeal` has no effect any more: {error}");
                    return self.want.changed().await.is_ok();
                },
            }
        }
    }

    /// Of a tap on its bridge only its own messages count; of one that is not, also its bridge's, to be.
    fn listen(&self, wanted: &Wanted, ear: &LinkWatch) -> std::io::Result<()> {
        let indexes: Vec<u32> =
            wanted.taps.iter().filter_map(|tap| self.network.index(&tap.name)).collect();
        let awaited = |tap: &&Tap| self.lost.contains_key(&tap.name);
        let mut names: Vec<IfName> =
            wanted.taps.iter().filter(awaited).map(|tap| tap.bridge.clone()).collect();
        names.dedup();
        ear.only(&indexes, &names)
    }

    /// Finds out which taps are not on their bridges, and puts them back where that is wanted.
    async fn look(&mut self, wanted: &Wanted) -> Vec<(&'static str, Value)> {
        let mut events = vec![];
        let known = |name: &IfName| wanted.taps.iter().any(|tap| tap.name == *name);
        self.lost.retain(|name, _| known(name));
        let links = match Links::open(self.network.connect()) {
            Ok(links) => links,
            Err(error) => {
                warn!("the taps cannot be looked at: {}", chain(&error));
                return events;
            }
        };
        for tap in &wanted.taps {
            let data = |why: Option<&str>| match why {
                Some(why) => json!({ "tap": tap.name, "bridge": tap.bridge, "reason": why }),
                None => json!({ "tap": tap.name, "bridge": tap.bridge }),
            };
            let was = self.lost.get(&tap.name).cloned();
            let state = match state(&links, tap).await {
                Ok(State::Gone) if was.is_none() && !self.is_gone().await => return events,
                Ok(state) => state,
                // Nothing is known: it is as it was.
                Err(error) => {
                    warn!("the tap `{}` cannot be looked at: {}", tap.name, chain(&error));
                    continue;
                }
            };
            let mut why = match state {
                State::OnBridge => None,
                State::Gone => Some("it was deleted".to_owned()),
                State::Elsewhere => Some("it was made a port of something else".to_owned()),
                State::Off(_) => Some("it was taken off the bridge".to_owned()),
            };
            if was.is_none()
                && let Some(why) = &why
            {
                warn!("the tap `{}` is not on its bridge `{}`: {why}", tap.name, tap.bridge);
                events.push(("QVM_TAP_LOST", data(Some(why))));
            }
            if let (State::Off(mtu), TapHeal::Heal) = (state, wanted.heal) {
                why = self.heal(&links, tap, mtu).await.err().map(|error| {
                    let again = "it is put back when that has changed";
                    format!("{}; {again}", chain(&error))
                });
            }
            let is_back = was.is_some() || state != State::OnBridge;
            match why {
                Some(why) => drop(self.lost.insert(tap.name.clone(), why)),
                None => {
                    self.lost.remove(&tap.name);
                    if is_back {
                        info!("the tap `{}` is on its bridge `{}` again", tap.name, tap.bridge);
                        events.push(("QVM_TAP_HEALED", data(None)));
                    }
                }
            }
        }
        events
    }

    /// Whether a tap that is not there was taken away: `false` when its NIC was plugged out. Where QEMU has ended, its taps have no
    /// keeper any more before this is over.
    async fn is_gone(&mut self) -> bool {
        tokio::select! {
            _ = self.want.changed() => {
                self.want.mark_changed();
                false
            }
            () = tokio::time::sleep(LAST_WORD) => true,
        }
    }

    async fn heal(&mut self, links: &Links, tap: &Tap, mtu: u32) -> Result<(), link::Error> {
        if let Some(last) = self.healed.get(&tap.name) {
            tokio::time::sleep_until((*last + HEAL_EVERY).into()).await;
        }
        // The guest has learnt this one.
        let mtu = tap.mtu.or(u16::try_from(mtu).ok());
        links.attach(&Tap { mtu, ..tap.clone() }).await?;
        self.healed.insert(tap.name.clone(), Instant::now());
        Ok(())
    }

    async fn tell(&self, events: Vec<(&'static str, Value)>) {
        let lost = self.lost.iter().map(|(tap, why)| {
            format!("the tap `{tap}` is not on its bridge, nothing passes: {why}")
        });
        let notes = self.unfiltered.iter().cloned().chain(lost).collect();
        let _ = self.facts.send(Fact::Taps(self.generation, Told { notes, events })).await;
    }
}

/// Where a tap is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    OnBridge,
    /// It is no port, with this MTU.
    Off(u32),
    /// Of another bridge, or of something that is none: whoever did that knows why.
    Elsewhere,
    /// It does not exist.
    Gone,
}

async fn state(links: &Links, tap: &Tap) -> Result<State, link::Error> {
    let Some(port) = links.find(&tap.name).await? else { return Ok(State::Gone) };
    let Some(controller) = port.controller else { return Ok(State::Off(port.mtu)) };
    let bridge = links.find(&tap.bridge).await?;
    Ok(match bridge {
        Some(bridge) if bridge.index == controller => State::OnBridge,
        Some(_) | None => State::Elsewhere,
    })
}
