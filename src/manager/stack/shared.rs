//! State that the passes over all Stacks share: what is remembered between passes, and how often
//! a Stack is reconciled and its status written.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::read_cache::ReadCache;
use super::served_kinds::ServedKinds;
use super::slots::Slots;

/// Shortest time between two passes over a Stack.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// What each resource adds to it: many children that become ready one by one are handled in one
/// pass, so that a big stack does not need more passes than a small one.
const PASS_INTERVAL_PER_RESOURCE: Duration = Duration::from_millis(2);
/// What each resource adds to the longest delay of a status that reports nothing but progress.
const REPORT_DELAY_PER_RESOURCE: Duration = Duration::from_millis(100);

/// How far the caches of watched objects can be behind the API server.
const MAX_STORE_LAG: Duration = Duration::from_mins(10);

/// How long passes over a Stack must fail before that is reported in its status: short failures
/// end by themselves.
const FAILURE_REPORT_DELAY: Duration = Duration::from_secs(10);

/// How many objects are read at once with the rights of service accounts, for all Stacks together.
const MAX_CONCURRENT_READS: usize = 32;

/// How long an object that a resource refers to may be missing: manifests that are applied
/// together may be created in any order.
const REFERENCE_GRACE_PERIOD: Duration = Duration::from_secs(60);

/// What the passes over all Stacks share.
pub struct Shared {
    /// How long an object outside of the stack that a resource refers to may be missing before
    /// the resource fails.
    pub(super) grace: Duration,
    pub(super) kinds: ServedKinds,
    pub(super) read_cache: ReadCache,
    /// Limits reads with the rights of service accounts; nothing else does.
    pub(super) reads: Semaphore,
    /// Who may evaluate.
    pub(super) slots: Slots,
    passes: Mutex<Passes>,
}

/// What is remembered about Stacks, by their uids.
#[derive(Default)]
struct Passes {
    /// When the next pass over each may begin.
    next_pass: HashMap<String, Instant>,
    /// When the status of each was last written.
    last_report: HashMap<String, Instant>,
    /// Since when passes over each have failed.
    failing_since: HashMap<String, Instant>,
    /// Those whose own deletion was requested, before any deletion of their definition.
    deletion_requested: HashSet<String>,
    /// When the finalizer of each was removed: the cache may contain it a little longer.
    released: HashMap<String, Instant>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            grace: REFERENCE_GRACE_PERIOD,
            kinds: ServedKinds::default(),
            read_cache: ReadCache::default(),
            reads: Semaphore::new(MAX_CONCURRENT_READS),
            slots: Slots::default(),
            passes: Mutex::default(),
        }
    }
}

impl Shared {
    /// With another grace period for objects that resources refer to.
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

    /// How long the next pass over a Stack still has to wait.
    pub(super) fn remaining_delay(&self, uid: &str) -> Option<Duration> {
        let until = *self.passes().next_pass.get(uid)?;
        let left = until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    pub(super) fn delay_next_pass(&self, uid: &str, resources: usize) {
        let pause = PASS_INTERVAL + times(PASS_INTERVAL_PER_RESOURCE, resources);
        let until = Instant::now() + pause;
        self.passes().next_pass.insert(uid.to_owned(), until);
    }

    /// How long a status that reports nothing but progress still has to wait. After a status was
    /// written, the next one waits a quarter of the time that the action has taken, at most the
    /// delay for the number of resources.
    pub(super) fn remaining_report_delay(
        &self,
        uid: &str,
        resources: usize,
        spent: Duration,
    ) -> Option<Duration> {
        let wait = times(REPORT_DELAY_PER_RESOURCE, resources).min(spent / 4);
        let elapsed = self.passes().last_report.get(uid)?.elapsed();
        wait.checked_sub(elapsed).filter(|left| !left.is_zero())
    }

    pub(super) fn note_reported(&self, uid: &str) {
        self.passes()
            .last_report
            .insert(uid.to_owned(), Instant::now());
    }

    /// Notes whether a pass has failed; whether all passes have failed for so long that it must be
    /// reported.
    pub(super) fn fails_for_long(&self, uid: &str, failed: bool) -> bool {
        let mut passes = self.passes();
        if !failed {
            passes.failing_since.remove(uid);
            return false;
        }
        let since = passes.failing_since.entry(uid.to_owned());
        since.or_insert_with(Instant::now).elapsed() >= FAILURE_REPORT_DELAY
    }

    /// Whether it is known that somebody has deleted the Stack itself. Its definition may be
    /// deleted later: its objects are deleted all the same.
    pub(super) fn is_deletion_requested(&self, uid: &str) -> bool {
        self.passes().deletion_requested.contains(uid)
    }

    pub(super) fn note_deletion_requested(&self, uid: &str) {
        self.passes().deletion_requested.insert(uid.to_owned());
    }

    /// Whether the finalizer of a Stack was removed.
    pub(super) fn is_released(&self, uid: &str) -> bool {
        self.passes().released.contains_key(uid)
    }

    /// Forgets a Stack whose finalizer was removed.
    pub(super) fn forget(&self, uid: &str) {
        let mut passes = self.passes();
        passes
            .released
            .retain(|_, then| then.elapsed() < MAX_STORE_LAG);
        passes.released.insert(uid.to_owned(), Instant::now());
        passes.next_pass.remove(uid);
        passes.last_report.remove(uid);
        passes.failing_since.remove(uid);
        passes.deletion_requested.remove(uid);
        self.read_cache.forget_all(uid);
    }
}

fn times(each: Duration, count: usize) -> Duration {
    each.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_long_actions_and_big_stacks_is_reported_less_often() {
        let shared = Shared::default();
        let delay = |resources, seconds| {
            let left =
                shared.remaining_report_delay("uid", resources, Duration::from_secs(seconds));
            left.map(|left| left.as_secs_f64().round())
        };
        // Nothing was reported yet.
        assert_eq!(delay(500, 800), None);
        shared.note_reported("uid");
        assert_eq!((delay(500, 40), delay(500, 800)), (Some(10.0), Some(50.0)));
        assert_eq!((delay(50, 800), delay(0, 800)), (Some(5.0), None));
        shared.forget("uid");
        assert_eq!(delay(500, 800), None);
    }
}
