//! How many may be connected at once, so that nobody who may connect keeps out who has to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many connections are served at once; a further one is closed.
const MAX_CONNECTIONS: usize = 256;
/// How many of them are for root and the supervisor's own user alone.
const KEPT_FREE: usize = 16;
/// How many any other user can have.
const OF_ONE_USER: usize = 128;

/// Those who are connected, by user id.
#[derive(Debug, Default, Clone)]
pub(super) struct ConnectionLimit(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    of: BTreeMap<u32, usize>,
    /// Somebody has been sent away since the last who could stay.
    sends_away: bool,
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    crowd: ConnectionLimit,
    uid: u32,
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Full {
    /// What to say about it; nothing where it has been said of the one before.
    pub(super) told: Option<String>,
}

impl ConnectionLimit {
    /// A place for a connection; `trusted` are root and the supervisor's own user.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn place(&self, uid: u32, trusted: bool) -> Result<Permit, Full> {
        let mut counts = self.counts();
        let all: usize = counts.of.values().sum();
        let theirs = counts.of.get(&uid).copied().unwrap_or(0);
        let (most, whose) = match trusted {
            true => (MAX_CONNECTIONS, "in all"),
            false if theirs >= OF_ONE_USER => (OF_ONE_USER, "of one user"),
            false => (MAX_CONNECTIONS - KEPT_FREE, "of users other than root"),
        };
        if all >= most || !trusted && theirs >= OF_ONE_USER {
            let said = std::mem::replace(&mut counts.sends_away, true);
            let told = format!(
                "user {uid} has {theirs} connections to the control socket, and there can be {most} {whose}: further ones are closed"
            );
            return Err(Full { told: (!said).then_some(told) });
        }
        counts.sends_away = false;
        *counts.of.entry(uid).or_default() += 1;
        drop(counts);
        Ok(Permit { crowd: self.clone(), uid })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing that holds the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        if let Some(count) = counts.of.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.of.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 1000;

    fn fill(crowd: &ConnectionLimit, uid: u32) -> Vec<Permit> {
        std::iter::from_fn(|| crowd.place(uid, uid == 0 || uid == OWN).ok()).collect()
    }

    #[test]
    fn one_user_cannot_keep_out_others_nor_all_of_them_root() {
        let crowd = ConnectionLimit::default();
        let first = fill(&crowd, 7);
        assert_eq!(first.len(), OF_ONE_USER);
        let second = fill(&crowd, 8);
        assert_eq!(first.len() + second.len(), MAX_CONNECTIONS - KEPT_FREE);
        assert_eq!(fill(&crowd, 9).len(), 0);
        let root = crowd.place(0, true).unwrap();
        let own = fill(&crowd, OWN);
        assert_eq!(own.len(), KEPT_FREE - 1);
        assert!(crowd.place(0, true).is_err());
        drop((root, own));
        assert_eq!(fill(&crowd, 0).len(), KEPT_FREE);
        drop((first, second));
        assert!(crowd.counts().of.is_empty());
    }

    #[test]
    fn who_is_sent_away_again_and_again_is_told_of_once() {
        let crowd = ConnectionLimit::default();
        let mut places = fill(&crowd, 0);
        assert_eq!(places.len(), MAX_CONNECTIONS);
        places.pop();
        places.push(crowd.place(0, true).unwrap());
        let told = |uid| crowd.place(uid, uid == 0 || uid == OWN).unwrap_err().told;
        let once = "user 7 has 0 connections to the control socket, and there can be 240 of users other than root: further ones are closed";
        assert_eq!((told(7).as_deref(), told(7), told(0)), (Some(once), None, None));
        places.pop();
        places.push(crowd.place(0, true).unwrap());
        assert!(told(0).unwrap().contains("there can be 256 in all"));
    }
}
