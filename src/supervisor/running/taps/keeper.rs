//! Looking after the taps beside the loop: asleep until the kernel says something of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{pending, ready},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::sleep,
};
use tracing::{info, warn};

use super::{blocked::Blocked, open, wanted::WantedTaps};
use crate::{
    net::{
        anti_spoof::filters,
        broker::Network,
        link::{self, Links},
        link_monitor::LinkWatch,
        tap_spec::Tap,
    },
    spec::TapHeal,
    supervisor::running::event::{TapsReport, VmEvent},
    value::{Explain, IfName, Note, NoteCode, chain},
};

/// A tap that goes is QEMU's last word, or its NIC was plugged out: that is learnt within this, or else it was taken away.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Who takes a tap off its bridge again and again shall not keep us busy.
const HEAL_EVERY: Duration = Duration::from_secs(1);

/// How soon it is tried again where something is not as it should be, and nothing tells of a change.
const AGAIN: Duration = Duration::from_secs(2);

/// The task.
pub(crate) struct Keeper {
    network: Network,
    want: watch::Receiver<WantedTaps>,
    looks: Arc<Mutex<()>>,
    reports: mpsc::Sender<VmEvent>,
    /// By what is heard of changes.
    ear: Option<LinkWatch>,
    /// Why the host's network cannot be reached.
    unreached: Option<Note>,
    /// What could not be filtered, and why.
    unfiltered: BTreeMap<IfName, Note>,
    /// What is not on its bridge, and why.
    lost: BTreeMap<IfName, String>,
    /// Where frames do not pass the bridge.
    blocked: Blocked,
    /// When something was put back last.
    healed: BTreeMap<IfName, Instant>,
}

/// When to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// At once: something else is to be listened for.
    Now,
    /// After a while, whether something is heard or not.
    Soon,
    /// When something is heard.
    Heard,
}

/// What becomes known of a tap.
type Event = (&'static str, Value);

impl Keeper {
    pub(crate) fn new(
        network: Network,
        want: watch::Receiver<WantedTaps>,
        looks: Arc<Mutex<()>>,
        reports: mpsc::Sender<VmEvent>,
    ) -> Self {
        Self {
            network,
            want,
            looks,
            reports,
            ear: None,
            unreached: None,
            unfiltered: BTreeMap::new(),
            lost: BTreeMap::new(),
            blocked: Blocked::default(),
            healed: BTreeMap::new(),
        }
    }

    /// Looks after the taps for as long as anything may be wanted of them.
    pub(crate) async fn keep(mut self) {
        let mut wanted = WantedTaps::default();
        // What is to be filtered yet, or again.
        let mut unset = BTreeSet::new();
        let mut changed = true;
        loop {
            if changed {
                wanted = self.want.borrow_and_update().clone();
                unset = wanted.taps.iter().map(|tap| tap.name.clone()).collect();
                changed = false;
            }
            let before = self.notes();
            let mut events = vec![];
            let next = match self.tend(&wanted, &mut unset, &mut events).await {
                Ok(next) => next,
                Err(why) => self.is_unreached(&why),
            };
            if !events.is_empty() || before != self.notes() {
                self.tell(events).await;
            }
            tokio::select! {
                biased;
                more = self.want.changed() => match more {
                    Ok(()) => changed = true,
                    Err(_) => return,
                },
                () = ready(()), if next == Next::Now => {}
                heard = hear(self.ear.as_mut()) => if heard.is_err() {
                    // It is made anew, but not again and again without a pause.
                    self.ear = None;
                    sleep(AGAIN).await;
                },
                () = sleep(AGAIN), if next == Next::Soon => {}
            }
        }
    }

    /// Has everything as it is wanted, as far as that can be.
    ///
    /// # Errors
    /// Why the host's network cannot be reached.
    async fn tend(
        &mut self,
        wanted: &WantedTaps,
        unset: &mut BTreeSet<IfName>,
        events: &mut Vec<Event>,
    ) -> Result<Next, String> {
        if wanted.heal == TapHeal::Off {
            self.ear = None;
            self.lost.clear();
        }
        if wanted.held {
            return Ok(Next::Heard);
        }
        if wanted.taps.is_empty() {
            self.ear = None;
            self.unreached = None;
            self.unfiltered.clear();
            self.lost.clear();
            self.blocked = Blocked::default();
            return Ok(Next::Heard);
        }
        let failed = |error: io::Error| chain(&error);
        let links = Links::open(self.network.connect().await).map_err(|error| chain(&error))?;
        // That may have taken a while.
        if self.want.has_changed().unwrap_or(true) {
            return Ok(Next::Now);
        }
        let mut next = self.filter(wanted, unset).await;
        let blocked = self.blocked.clone();
        if wanted.heal != TapHeal::Off {
            let ear = match self.ear.take() {
                Some(ear) => ear,
                None => self.network.route().await.and_then(LinkWatch::open).map_err(failed)?,
            };
            // Listen first, look then: nothing can change unheard in between.
            self.listen(wanted, &links, &ear).await?;
            self.ear = Some(ear);
            let before: Vec<IfName> = self.lost.keys().cloned().collect();
            let looks = self.looks.clone();
            let _looking = looks.lock().await;
            // Held since: it is looked at when the change is done.
            if self.want.has_changed().is_ok_and(|changed| !changed)
                && !self.look(wanted, &links, events).await?
            {
                next = Next::Soon;
            }
            if !self.lost.keys().eq(&before) {
                next = Next::Now;
            }
        }
        self.blocked.examine(wanted, &links).await.map_err(|error| chain(&error))?;
        if wanted.heal == TapHeal::Off {
            // Nothing is heard then.
            if !self.blocked.is_empty() {
                next = Next::Soon;
            }
        } else if !self.blocked.has_those_of(&blocked) {
            next = Next::Now;
        }
        if self.unreached.take().is_some() {
            info!("the host's network can be reached again: the taps are looked after");
        }
        Ok(next)
    }

    fn is_unreached(&mut self, why: &str) -> Next {
        let text =
            format!("the taps are not looked after, the host's network cannot be reached: {why}");
        let note = Note::new(NoteCode::TapsUnattended, text);
        if self.unreached.is_none() {
            warn!("{note}");
        }
        self.unreached = Some(note);
        Next::Soon
    }

    /// Filters what leaves the taps that have to be filtered yet.
    async fn filter(&mut self, wanted: &WantedTaps, unset: &mut BTreeSet<IfName>) -> Next {
        let known = |name: &IfName| wanted.taps.iter().any(|tap| tap.name == *name);
        self.unfiltered.retain(|name, _| known(name));
        let mut next = Next::Heard;
        for tap in &wanted.taps {
            if !unset.contains(&tap.name) {
                continue;
            }
            let error = match open::filter(&self.network, tap, &wanted.macs).await {
                Err(error)
                    if tap.filter(&wanted.macs).is_some()
                        && !matches!(error, filters::Error::Gone(_)) =>
                {
                    error
                }
                Ok(()) | Err(_) => {
                    unset.remove(&tap.name);
                    self.unfiltered.remove(&tap.name);
                    continue;
                }
            };
            match error {
                // What this kernel has, and what this process may do, stays as it is.
                filters::Error::Missing(_) | filters::Error::Denied { .. } => {
                    unset.remove(&tap.name);
                }
                _ => next = Next::Soon,
            }
            let text =
                format!("`antiSpoof` has no effect on the tap `{}`: {}", tap.name, chain(&error));
            let note = Note::new(NoteCode::NoEffect, text).key("antiSpoof").hint(error.hint());
            if !self.unfiltered.contains_key(&tap.name) {
                warn!("{note}");
            }
            self.unfiltered.insert(tap.name.clone(), note);
        }
        next
    }

    /// Of a tap on its bridge only its own messages count: the kernel sends one when the bridge goes down. The bridge's
    /// count where the tap is not on it and where it does not pass frames.
    async fn listen(
        &self,
        wanted: &WantedTaps,
        links: &Links,
        ear: &LinkWatch,
    ) -> Result<(), String> {
        let mut indexes = vec![];
        for tap in &wanted.taps {
            let found = links.find(&tap.name).await.map_err(|error| chain(&error))?;
            indexes.extend(found.map(|link| link.index));
        }
        let awaited = |tap: &&Tap| self.lost.contains_key(&tap.name) || self.blocked.has(&tap.name);
        let mut names: Vec<IfName> =
            wanted.taps.iter().filter(awaited).map(|tap| tap.bridge.clone()).collect();
        names.dedup();
        ear.only(&indexes, &names).map_err(|error| chain(&error))
    }

    /// Finds out which taps are not on their bridges, and puts them back where that is wanted; `false` where that is to be tried again.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    async fn look(
        &mut self,
        wanted: &WantedTaps,
        links: &Links,
        events: &mut Vec<Event>,
    ) -> Result<bool, String> {
        let known = |name: &IfName| wanted.taps.iter().any(|tap| tap.name == *name);
        self.lost.retain(|name, _| known(name));
        let mut done = true;
        for tap in &wanted.taps {
            let data = |why: Option<&str>| match why {
                Some(why) => json!({ "tap": tap.name, "bridge": tap.bridge, "reason": why }),
                None => json!({ "tap": tap.name, "bridge": tap.bridge }),
            };
            let was = self.lost.get(&tap.name).cloned();
            let state = state(links, tap).await.map_err(|error| chain(&error))?;
            if state == State::Gone && was.is_none() && !self.is_gone().await {
                return Ok(done);
            }
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
                why = self.heal(links, tap, mtu).await.err().map(|error| {
                    // Of these it is heard when they have changed.
                    let heard = matches!(
                        error,
                        link::Error::NoBridge { .. } | link::Error::NotABridge { .. }
                    );
                    done &= heard;
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
        Ok(done)
    }

    /// Whether a tap that is not there was taken away: `false` when its NIC was plugged out. Where QEMU has ended, its taps have no
    /// keeper any more before this is over.
    async fn is_gone(&mut self) -> bool {
        tokio::select! {
            _ = self.want.changed() => {
                self.want.mark_changed();
                false
            }
            () = sleep(LAST_WORD) => true,
        }
    }

    async fn heal(&mut self, links: &Links, tap: &Tap, mtu: u32) -> Result<(), link::Error> {
        if let Some(last) = self.healed.get(&tap.name) {
            tokio::time::sleep_until((*last + HEAL_EVERY).into()).await;
        }
        links.reattach(tap, mtu).await?;
        self.healed.insert(tap.name.clone(), Instant::now());
        Ok(())
    }

    fn notes(&self) -> Vec<Note> {
        let lost = self.lost.iter().map(|(tap, why)| {
            let text = format!("the tap `{tap}` is not on its bridge, nothing passes: {why}");
            Note::new(NoteCode::TapOffBridge, text)
        });
        let others = self.unreached.iter().chain(self.unfiltered.values()).cloned();
        others.chain(lost).chain(self.blocked.notes()).collect()
    }

    async fn tell(&self, events: Vec<Event>) {
        let report = TapsReport { notes: self.notes(), events };
        let _ = self.reports.send(VmEvent::Taps(report)).await;
    }
}

/// Waits for a change of what is listened for.
async fn hear(ear: Option<&mut LinkWatch>) -> io::Result<()> {
    match ear {
        Some(ear) => ear.next().await,
        None => pending().await,
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
