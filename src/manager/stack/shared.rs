//! What the passes over all Stacks share: what is remembered between them, and how often they
//! come and tell.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::read_cache::ReadCache;
use super::served_kinds::ServedKinds;

/// Shortest time between two passes over a Stack.
const PACE: Duration = Duration::from_millis(100);
/// What each resource adds to it: children that become ready one by one are looked at
/// together, so that a big stack costs no more than a small one.
const PACE_EACH: Duration = Duration::from_millis(2);
/// What each resource adds to the longest time for which a status that tells of nothing but
/// progress is held back.
const TOLD_EACH: Duration = Duration::from_millis(100);

/// How far stores are behind at most.
const BEHIND: Duration = Duration::from_mins(10);

/// How long passes over a Stack fail before that is told: a moment's trouble passes by itself.
const LONG: Duration = Duration::from_secs(10);

/// How many reads of what service accounts have made are under way at once, of all Stacks.
const READS: usize = 32;

/// How long what a resource names may be missing: what is applied together comes in any order.
const GRACE: Duration = Duration::from_secs(60);

/// What the passes over all Stacks share.
pub struct Shared {
    /// How long what a resource names from outside the stack may be missing before that is its
    /// failure.
    pub(super) grace: Duration,
    pub(super) kinds: ServedKinds,
    pub(super) recall: ReadCache,
    /// Reads with the rights of service accounts, which nothing else bounds.
    pub(super) reads: Semaphore,
    passes: Mutex<Passes>,
}

/// What is remembered of Stacks, by their uids.
#[derive(Default)]
struct Passes {
    /// When each may be looked at again.
    rested: HashMap<String, Instant>,
    /// When the status of each was last written.
    told: HashMap<String, Instant>,
    /// Since when passes over each have failed.
    failing: HashMap<String, Instant>,
    /// Those that somebody has deleted, and not all of their kind.
    asked_to_go: HashSet<String>,
    /// When the last of each was done: a store may have it for a moment more.
    gone: HashMap<String, Instant>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            grace: GRACE,
            kinds: ServedKinds::default(),
            recall: ReadCache::default(),
            reads: Semaphore::new(READS),
            passes: Mutex::default(),
        }
    }
}

impl Shared {
    /// With another time of grace for what resources name.
    #[must_use]
    pub fn with_grace(grace: Duration) -> Self {
        Self {
            grace,
            ..Self::default()
        }
    }

    fn passes(&self) -> MutexGuard<'_, Passes> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a Stack still has to rest.
    pub(super) fn rest(&self, uid: &str) -> Option<Duration> {
        let until = *self.passes().rested.get(uid)?;
        let left = until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn tire(&self, uid: &str, resources: usize) {
        let until = Instant::now() + PACE + times(PACE_EACH, resources);
        self.passes().rested.insert(uid.to_owned(), until);
    }

    /// How long a status that tells of nothing but progress still has to wait: after one that
    /// was written a quarter of the time that the action has taken, and no longer than one of so
    /// many resources is worth.
    pub(super) fn hold(&self, uid: &str, resources: usize, spent: Duration) -> Option<Duration> {
        let wait = times(TOLD_EACH, resources).min(spent / 4);
        let told = self.passes().told.get(uid)?.elapsed();
        wait.checked_sub(told).filter(|left| !left.is_zero())
    }

    pub(super) fn note_told(&self, uid: &str) {
        self.passes().told.insert(uid.to_owned(), Instant::now());
    }

    /// Notes how a pass has ended; whether none has come to its end for long.
    pub(super) fn fails_for_long(&self, uid: &str, failed: bool) -> bool {
        let mut passes = self.passes();
        if !failed {
            passes.failing.remove(uid);
            return false;
        }
        let since = passes.failing.entry(uid.to_owned());
        since.or_insert_with(Instant::now).elapsed() >= LONG
    }

    /// Whether it is known that somebody has deleted the Stack itself. Its kind may go later: then
    /// it still does what it was asked to.
    pub(super) fn was_asked_to_go(&self, uid: &str) -> bool {
        self.passes().asked_to_go.contains(uid)
    }

    pub(super) fn note_asked_to_go(&self, uid: &str) {
        self.passes().asked_to_go.insert(uid.to_owned());
    }

    /// Whether a Stack was let go of.
    pub(super) fn is_gone(&self, uid: &str) -> bool {
        self.passes().gone.contains_key(uid)
    }

    /// Forgets a Stack that was let go of.
    pub(super) fn forget(&self, uid: &str) {
        let mut passes = self.passes();
        passes.gone.retain(|_, then| then.elapsed() < BEHIND);
        passes.gone.insert(uid.to_owned(), Instant::now());
        passes.rested.remove(uid);
        passes.told.remove(uid);
        passes.failing.remove(uid);
        passes.asked_to_go.remove(uid);
        self.recall.forget_all(uid);
    }
}

fn times(each: Duration, count: usize) -> Duration {
    each.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_the_seldomer_the_longer_it_takes_and_the_more_there_is() {
        let shared = Shared::default();
        let held = |resources, seconds| {
            let left = shared.hold("uid", resources, Duration::from_secs(seconds));
            left.map(|left| left.as_secs_f64().round())
        };
        // Nothing was told yet.
        assert_eq!(held(500, 800), None);
        shared.note_told("uid");
        assert_eq!((held(500, 40), held(500, 800)), (Some(10.0), Some(50.0)));
        assert_eq!((held(50, 800), held(0, 800)), (Some(5.0), None));
        shared.forget("uid");
        assert_eq!(held(500, 800), None);
    }
}
