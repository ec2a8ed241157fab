//! A limit on connections to the control socket, so that no client can exclude others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The maximum number of connections; further ones are closed.
const MAX_CONNECTIONS: usize = 256;
/// The number of connections reserved for root and the supervisor's own user.
const RESERVED: usize = 16;
/// The maximum number of connections of any other user.
const MAX_PER_USER: usize = 128;

/// The open connections by UID.
#[derive(Debug, Default, Clone)]
pub(super) struct ConnectionLimit(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    by_uid: BTreeMap<u32, usize>,
    /// Whether a connection has been refused since the last accepted one.
    is_refusing: bool,
}

/// The permit of one connection; dropping it frees it.
#[derive(Debug)]
pub(super) struct Permit {
    limit: ConnectionLimit,
    uid: u32,
}

/// No further connection is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Full {
    /// The message to log; `None` if the previous connection was refused too.
    pub(super) message: Option<String>,
}

impl ConnectionLimit {
    /// Returns a permit for a connection; `trusted` are root and the supervisor's own user.
    ///
    /// # Errors
    /// The limit is reached.
    pub(super) fn acquire(&self, uid: u32, trusted: bool) -> Result<Permit, Full> {
        let mut counts = self.counts();
        let all: usize = counts.by_uid.values().sum();
        let theirs = counts.by_uid.get(&uid).copied().unwrap_or(0);
        let (most, whose) = match trusted {
            true => (MAX_CONNECTIONS, "in total"),
            false if theirs >= MAX_PER_USER => (MAX_PER_USER, "for one user"),
            false => (MAX_CONNECTIONS - RESERVED, "for users other than root"),
        };
        if all >= most || !trusted && theirs >= MAX_PER_USER {
            let was_refusing = std::mem::replace(&mut counts.is_refusing, true);
            let message = format!(
                "connection to the control socket refused: user {uid} has {theirs} connections, \
                                 the limit is {most} {whose}"
            );
            return Err(Full { message: (!was_refusing).then_some(message) });
        }
        counts.is_refusing = false;
        *counts.by_uid.entry(uid).or_default() += 1;
        drop(counts);
        Ok(Permit { limit: self.clone(), uid })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // No code that holds the lock can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.limit.counts();
        if let Some(count) = counts.by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.by_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 1000;

    fn fill(limit: &ConnectionLimit, uid: u32) -> Vec<Permit> {
        std::iter::from_fn(|| limit.acquire(uid, uid == 0 || uid == OWN).ok()).collect()
    }

    #[test]
    fn users_cannot_exclude_others_or_root() {
        let limit = ConnectionLimit::default();
        let first = fill(&limit, 7);
        assert_eq!(first.len(), MAX_PER_USER);
        let second = fill(&limit, 8);
        assert_eq!(first.len() + second.len(), MAX_CONNECTIONS - RESERVED);
        assert_eq!(fill(&limit, 9).len(), 0);
        let root = limit.acquire(0, true).unwrap();
        let own = fill(&limit, OWN);
        assert_eq!(own.len(), RESERVED - 1);
        assert!(limit.acquire(0, true).is_err());
        drop((root, own));
        assert_eq!(fill(&limit, 0).len(), RESERVED);
        drop((first, second));
        assert!(limit.counts().by_uid.is_empty());
    }

    #[test]
    fn repeated_refusals_are_logged_once() {
        let limit = ConnectionLimit::default();
        let mut places = fill(&limit, 0);
        assert_eq!(places.len(), MAX_CONNECTIONS);
        places.pop();
        places.push(limit.acquire(0, true).unwrap());
        let message = |uid| limit.acquire(uid, uid == 0 || uid == OWN).unwrap_err().message;
        let once = "connection to the control socket refused: user 7 has 0 connections, \
            the limit is 240 for users other than root";
        assert_eq!((message(7).as_deref(), message(7), message(0)), (Some(once), None, None));
        places.pop();
        places.push(limit.acquire(0, true).unwrap());
        assert!(message(0).unwrap().contains("the limit is 256 in total"));
    }
}
