//! Servers that are to be decided, and those that wait until something can help them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::objects::catalogue::Key;

/// When a Server that waits is looked at again though nothing has happened; doubles with
/// each message that it was told, up to [`LONGEST`].
const RETRY_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// How soon the figures in a Server's message are brought up to date at the earliest;
/// doubles as well.
const REPORT_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest pause of either.
const MAX_INTERVAL: SignedDuration = SignedDuration::from_secs(600);

/// Why a Server waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// No host fits.
    NoHostFits,
    /// Something that it refers to is missing or wrong.
    Unresolved,
    /// The API server refused its status.
    StatusRejected,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    why: WaitReason,
    since: Timestamp,
    until: Timestamp,
}

/// What a Server was told.
#[derive(Clone, Copy, Debug)]
struct Reports {
    times: u32,
    last: Timestamp,
}

/// The queue: a Server is in it once, to be decided or waiting.
#[derive(Debug, Default)]
pub struct Queue {
    pending: BTreeMap<Key, Option<Time>>,
    waiting: BTreeMap<Key, Waiting>,
    reports: BTreeMap<Key, Reports>,
}

fn doubled(base: SignedDuration, times: u32) -> SignedDuration {
    let factor = 1_i32.checked_shl(times.min(16)).unwrap_or(i32::MAX);
    base.checked_mul(factor)
        .unwrap_or(MAX_INTERVAL)
        .min(MAX_INTERVAL)
}

impl Queue {
    /// Number of Servers in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len() + self.waiting.len()
    }

    /// Whether the Server waits.
    #[must_use]
    pub fn is_waiting(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// To be decided next.
    pub fn push(&mut self, key: Key, created: Option<Time>) {
        self.waiting.remove(&key);
        self.pending.insert(key, created);
    }

    /// All that are to be decided, the oldest first.
    pub fn take_pending(&mut self) -> Vec<Key> {
        let mut all: Vec<_> = std::mem::take(&mut self.pending).into_iter().collect();
        all.sort_by(|(a, x), (b, y)| (x, a).cmp(&(y, b)));
        all.into_iter().map(|(key, _)| key).collect()
    }

    /// It waits, until something helps or for a while that grows with what it was told.
    pub fn wait(&mut self, key: Key, why: WaitReason, now: Timestamp) {
        let times = self.reports.get(&key).map_or(0, |t| t.times);
        self.wait_until(key, why, now, now + doubled(RETRY_INTERVAL, times));
    }

    /// It waits until then at most.
    pub fn wait_until(&mut self, key: Key, why: WaitReason, now: Timestamp, until: Timestamp) {
        self.pending.remove(&key);
        let since = self.waiting.get(&key).map_or(now, |w| w.since);
        self.waiting.insert(key, Waiting { why, since, until });
    }

    /// It was told why it waits.
    pub fn reported(&mut self, key: &Key, now: Timestamp) {
        let reports = self.reports.entry(key.clone());
        let reports = reports.or_insert(Reports {
            times: 0,
            last: now,
        });
        reports.times = reports.times.saturating_add(1);
        reports.last = now;
    }

    /// When the figures that it was told may be brought up to date, if it was told any.
    #[must_use]
    pub fn next_report(&self, key: &Key) -> Option<Timestamp> {
        let reports = self.reports.get(key)?;
        Some(reports.last + doubled(REPORT_INTERVAL, reports.times.saturating_sub(1)))
    }

    /// What it was told is out of date, and brought up to date as soon as may be.
    pub fn refresh_soon(&mut self, key: &Key) {
        let Some(refresh) = self.next_report(key) else {
            return;
        };
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.until = waiting.until.min(refresh);
        }
    }

    /// Its wishes have changed: what it was told is of no account.
    pub fn reset_backoff(&mut self, key: &Key) {
        self.reports.remove(key);
    }

    /// It is neither decided nor waits.
    pub fn remove(&mut self, key: &Key) {
        self.pending.remove(key);
        self.waiting.remove(key);
        self.reports.remove(key);
    }

    /// Those that have waited long enough.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Vec<Key> {
        let due = self.waiting.iter().filter(|(_, w)| w.until <= now);
        due.map(|(key, _)| key.clone()).collect()
    }

    /// Those that wait for `why`.
    #[must_use]
    pub fn waiting_for(&self, why: WaitReason) -> Vec<Key> {
        let some = self.waiting.iter().filter(|(_, w)| w.why == why);
        some.map(|(key, _)| key.clone()).collect()
    }

    /// Those that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &Key> {
        self.waiting.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let now = Timestamp::from_second(1000).unwrap();
        let key: Key = ("ns".into(), "a".into());
        let mut queue = Queue::default();
        let pause = |queue: &mut Queue| {
            queue.wait(key.clone(), WaitReason::NoHostFits, now);
            (1..2000)
                .find(|s| !queue.due(now + SignedDuration::from_secs(*s)).is_empty())
                .unwrap()
        };
        assert_eq!(pause(&mut queue), 60);
        queue.reported(&key, now);
        assert_eq!(queue.next_report(&key), Some(now + REPORT_INTERVAL));
        assert_eq!(pause(&mut queue), 120);
        queue.refresh_soon(&key);
        assert_eq!(queue.due(now + REPORT_INTERVAL).len(), 1);
        for _ in 0..40 {
            queue.reported(&key, now);
        }
        assert_eq!(queue.next_report(&key), Some(now + MAX_INTERVAL));
        assert_eq!(pause(&mut queue), 600);
        queue.reset_backoff(&key);
        assert_eq!(pause(&mut queue), 60);
    }
}
