//! What the passes over all Stacks share: what is remembered between them, and how often they
//! come and report.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::recall::Recall;
use super::served::Kinds;

/// Shortest time between two passes over a Stack.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// What each resource adds to it: children that become ready one by one are looked at
/// together, so that a big stack costs no more than a small one.
const PASS_INTERVAL_PER_RESOURCE: Duration = Duration::from_millis(2);
/// What each resource adds to the longest time for which a status that tells of nothing but
/// progress is held back.
const STATUS_INTERVAL_PER_RESOURCE: Duration = Duration::from_millis(100);

/// How far caches are behind at most.
const MAX_CACHE_LAG: Duration = Duration::from_mins(10);

/// How long passes over a Stack fail before that is reported: most trouble passes by itself.
const FAILURE_REPORT_DELAY: Duration = Duration::from_secs(10);

/// How many reads of what service accounts have made are under way at once, of all Stacks.
const MAX_READS: usize = 32;

/// How long what a resource names may be missing: what is applied together comes in any order.
const GRACE_PERIOD: Duration = Duration::from_secs(60);

/// What the passes over all Stacks share.
pub struct Shared {
    /// How long what a resource names from outside the stack may be missing before that is its
    /// failure.
    pub(super) grace: Duration,
    pub(super) kinds: Kinds,
    pub(super) recall: Recall,
    /// Reads with the rights of service accounts, which nothing else bounds.
    pub(super) reads: Semaphore,
    passes: Mutex<Passes>,
}

/// What is remembered of Stacks, by their uids.
#[derive(Default)]
struct Passes {
    /// When each may be looked at again.
    throttled: HashMap<String, Instant>,
    /// When the status of each was last written.
    reported: HashMap<String, Instant>,
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
            grace: GRACE_PERIOD,
            kinds: Kinds::default(),
            recall: Recall::default(),
            reads: Semaphore::new(MAX_READS),
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

    /// How long a Stack is still throttled for.
    pub(super) fn throttled_for(&self, uid: &str) -> Option<Duration> {
        let until = *self.passes().throttled.get(uid)?;
        let left = until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn throttle(&self, uid: &str, resources: usize) {
        let until = Instant::now() + PASS_INTERVAL + times(PASS_INTERVAL_PER_RESOURCE, resources);
        self.passes().throttled.insert(uid.to_owned(), until);
    }

    /// How long a status that reports nothing but progress still has to wait: after one that
    /// was written a quarter of the time that the action has taken, and no longer than one of so
    /// many resources is worth.
    pub(super) fn defer_status(
        &self,
        uid: &str,
        resources: usize,
        spent: Duration,
    ) -> Option<Duration> {
        let wait = times(STATUS_INTERVAL_PER_RESOURCE, resources).min(spent / 4);
        let reported = self.passes().reported.get(uid)?.elapsed();
        wait.checked_sub(reported).filter(|left| !left.is_zero())
    }

    pub(super) fn note_reported(&self, uid: &str) {
        self.passes()
            .reported
            .insert(uid.to_owned(), Instant::now());
    }

    /// Notes how a pass has ended; whether none has come to its end for long.
    pub(super) fn fails_for_long(&self, uid: &str, failed: bool) -> bool {
        let mut passes = self.passes();
        if !failed {
            passes.failing.remove(uid);
            return false;
        }
        let since = passes.failing.entry(uid.to_owned());
        since.or_insert_with(Instant::now).elapsed() >= FAILURE_REPORT_DELAY
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
        passes.gone.retain(|_, then| then.elapsed() < MAX_CACHE_LAG);
        passes.gone.insert(uid.to_owned(), Instant::now());
        passes.throttled.remove(uid);
        passes.reported.remove(uid);
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
    fn status_of_progress_is_written_less_often_the_longer_it_takes_and_the_more_there_is() {
        let shared = Shared::default();
        let held = |resources, seconds| {
            let left = shared.defer_status("uid", resources, Duration::from_secs(seconds));
            left.map(|left| left.as_secs_f64().round())
        };
        // Nothing was told yet.
        assert_eq!(held(500, 800), None);
        shared.note_reported("uid");
        assert_eq!((held(500, 40), held(500, 800)), (Some(10.0), Some(50.0)));
        assert_eq!((held(50, 800), held(0, 800)), (Some(5.0), None));
        shared.forget("uid");
        assert_eq!(held(500, 800), None);
    }
}
