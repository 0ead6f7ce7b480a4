//! The scheduling queue: Servers that are pending, and Servers that wait.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::objects::catalogue::Key;

/// Time until a Server that waits is decided again without any event; doubles with each
/// report, up to [`MAX_INTERVAL`].
const RETRY_INTERVAL: SignedDuration = SignedDuration::from_secs(60);
/// Least time between two reports that differ only in the message; doubles as well.
const REPORT_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest of both.
const MAX_INTERVAL: SignedDuration = SignedDuration::from_secs(600);

/// Why a Server waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// No host fits.
    NoHostFits,
    /// An object that it refers to is missing or invalid.
    Unresolved,
    /// The API server rejected its status.
    StatusRejected,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    why: WaitReason,
    since: Timestamp,
    until: Timestamp,
}

/// Reports of a Server that waits.
#[derive(Clone, Copy, Debug)]
struct Reports {
    count: u32,
    last: Timestamp,
}

/// The queue; a Server is in it once, pending or waiting.
#[derive(Debug, Default)]
pub struct Queue {
    pending: BTreeMap<Key, Option<Time>>,
    /// Those of them that the next pass takes although nothing has happened.
    deferred: BTreeSet<Key>,
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

    /// Whether a Server waits.
    #[must_use]
    pub fn is_waiting(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// Adds a Server to be decided.
    pub fn push(&mut self, key: Key, created: Option<Time>) {
        self.waiting.remove(&key);
        self.pending.insert(key, created);
    }

    /// Leaves a Server to the next pass: this one has done enough for its namespace.
    pub fn defer(&mut self, key: Key, created: Option<Time>) {
        self.deferred.insert(key.clone());
        self.push(key, created);
    }

    /// Whether Servers were left to the next pass.
    #[must_use]
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Removes and returns all pending Servers, the oldest first.
    pub fn take_pending(&mut self) -> Vec<Key> {
        self.deferred.clear();
        let mut all: Vec<_> = std::mem::take(&mut self.pending).into_iter().collect();
        all.sort_by(|(a, x), (b, y)| (x, a).cmp(&(y, b)));
        all.into_iter().map(|(key, _)| key).collect()
    }

    /// Lets a Server wait, at most for a time that grows with its reports.
    pub fn wait(&mut self, key: Key, why: WaitReason, now: Timestamp) {
        let times = self.reports.get(&key).map_or(0, |t| t.count);
        self.wait_until(key, why, now, now + doubled(RETRY_INTERVAL, times));
    }

    /// Lets a Server wait at most until `until`.
    pub fn wait_until(&mut self, key: Key, why: WaitReason, now: Timestamp, until: Timestamp) {
        self.pending.remove(&key);
        let since = self.waiting.get(&key).map_or(now, |w| w.since);
        self.waiting.insert(key, Waiting { why, since, until });
    }

    /// A report of a Server was written.
    pub fn reported(&mut self, key: &Key, now: Timestamp) {
        let reports = self.reports.entry(key.clone());
        let reports = reports.or_insert(Reports {
            count: 0,
            last: now,
        });
        reports.count = reports.count.saturating_add(1);
        reports.last = now;
    }

    /// When the next report may be written, if there was one before.
    #[must_use]
    pub fn next_report(&self, key: &Key) -> Option<Timestamp> {
        let reports = self.reports.get(key)?;
        Some(reports.last + doubled(REPORT_INTERVAL, reports.count.saturating_sub(1)))
    }

    /// The last report is outdated: the Server is decided again as soon as the next may be
    /// written.
    pub fn refresh_soon(&mut self, key: &Key) {
        let Some(refresh) = self.next_report(key) else {
            return;
        };
        if let Some(waiting) = self.waiting.get_mut(key) {
            waiting.until = waiting.until.min(refresh);
        }
    }

    /// Its spec has changed: intervals start from the beginning.
    pub fn reset_backoff(&mut self, key: &Key) {
        self.reports.remove(key);
    }

    /// Removes a Server from the queue.
    pub fn remove(&mut self, key: &Key) {
        self.deferred.remove(key);
        self.pending.remove(key);
        self.waiting.remove(key);
        self.reports.remove(key);
    }

    /// Servers whose time to wait is over.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Vec<Key> {
        let due = self.waiting.iter().filter(|(_, w)| w.until <= now);
        due.map(|(key, _)| key.clone()).collect()
    }

    /// Servers that wait for this reason.
    #[must_use]
    pub fn waiting_for(&self, why: WaitReason) -> Vec<Key> {
        let some = self.waiting.iter().filter(|(_, w)| w.why == why);
        some.map(|(key, _)| key.clone()).collect()
    }

    /// Servers that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &Key> {
        self.waiting.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_up_to_the_maximum() {
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
