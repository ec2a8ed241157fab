//! The task that watches the taps: it sleeps until a message of the kernel.

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

/// A tap is deleted by the exit of QEMU, a removed NIC, or another process; only the last is not
/// known within this time.
const LAST_WORD: Duration = Duration::from_secs(5);
/// The minimum interval between two repairs, in case another process detaches a tap repeatedly.
const HEAL_EVERY: Duration = Duration::from_secs(1);

/// The delay before a retry without a message of the kernel.
const AGAIN: Duration = Duration::from_secs(2);

pub(crate) struct Keeper {
    network: Network,
    want: watch::Receiver<WantedTaps>,
    looks: Arc<Mutex<()>>,
    reports: mpsc::Sender<VmEvent>,
    /// The source of the kernel's messages.
    ear: Option<LinkWatch>,
    /// Why the host's network is not reachable.
    unreached: Option<Note>,
    /// Notes about taps without a filter.
    unfiltered: BTreeMap<IfName, Note>,
    /// The detached taps, and why.
    lost: BTreeMap<IfName, String>,
    /// Taps with a blocked bridge.
    blocked: Blocked,
    /// The time of the last repair.
    healed: BTreeMap<IfName, Instant>,
}

/// When to examine the taps again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// At once: the set of messages has changed.
    Now,
    /// After a delay, or at a message.
    Soon,
    /// At a message.
    Heard,
}

/// A change of a tap.
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

    /// Watches the taps until the sender of the wanted state is dropped.
    pub(crate) async fn keep(mut self) {
        let mut wanted = WantedTaps::default();
        // Filters that are not set yet.
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
                    // Created again, but with a delay between attempts.
                    self.ear = None;
                    sleep(AGAIN).await;
                },
                () = sleep(AGAIN), if next == Next::Soon => {}
            }
        }
    }

    /// Applies the wanted state as far as possible.
    ///
    /// # Errors
    /// Why the host's network is not reachable.
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
        // The steps above may take some time.
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
            // Subscribe before the examination: no change is missed.
            self.listen(wanted, &links, &ear).await?;
            self.ear = Some(ear);
            let before: Vec<IfName> = self.lost.keys().cloned().collect();
            let looks = self.looks.clone();
            let _looking = looks.lock().await;
            // A change has begun: the taps are examined after it.
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
            // Without a subscription there are no messages.
            if !self.blocked.is_empty() {
                next = Next::Soon;
            }
        } else if !self.blocked.has_those_of(&blocked) {
            next = Next::Now;
        }
        if self.unreached.take().is_some() {
            info!("the host's network is reachable again: taps are watched");
        }
        Ok(next)
    }

    fn is_unreached(&mut self, why: &str) -> Next {
        let text =
            format!("taps are not watched, because the host's network is not reachable: {why}");
        let note = Note::new(NoteCode::TapsUnattended, text);
        if self.unreached.is_none() {
            warn!("{note}");
        }
        self.unreached = Some(note);
        Next::Soon
    }

    /// Sets the missing filters.
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
                // The kernel's modules and the process's privileges do not change.
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

    /// For an attached tap, only its own messages matter: the kernel sends one when the bridge goes
    /// down. The bridge's messages matter for a detached or blocked tap.
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

    /// Examines the taps, and attaches detached ones if wanted; `false` if a retry is required.
    ///
    /// # Errors
    /// The kernel refuses the query.
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
                    // The kernel sends a message when these change.
                    let heard = matches!(
                        error,
                        link::Error::NoBridge { .. } | link::Error::NotABridge { .. }
                    );
                    done &= heard;
                    let again = "it is attached again when that has changed";
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

    /// Whether a missing tap was deleted by another process: `false` if its NIC was removed. After
    /// an exit of QEMU this task is aborted before it returns.
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
            let text = format!("the tap `{tap}` is not on its bridge and has no network: {why}");
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

/// Waits for a relevant message.
async fn hear(ear: Option<&mut LinkWatch>) -> io::Result<()> {
    match ear {
        Some(ear) => ear.next().await,
        None => pending().await,
    }
}

/// The attachment of a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    OnBridge,
    /// Attached to no bridge, with this MTU.
    Off(u32),
    /// Attached to another interface, on purpose.
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
