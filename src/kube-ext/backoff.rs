//! Waits that double with each failure of an object, as kube's controllers have none.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Attempts by object.
#[derive(Debug)]
pub struct Backoff<K> {
    first: Duration,
    most: Duration,
    attempts: Mutex<HashMap<K, u32>>,
}

impl<K: Eq + Hash> Backoff<K> {
    /// Waits from `first`, doubled with each failure, up to `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            attempts: Mutex::default(),
        }
    }

    /// Notes a failure and says how long to wait.
    pub fn next(&self, key: K) -> Duration {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = attempts.entry(key).or_insert(0);
        let wait = self.first.saturating_mul(1 << (*count).min(20));
        *count = count.saturating_add(1);
        wait.min(self.most)
    }

    /// Forgets the failures of an object that went well, or is gone.
    pub fn reset(&self, key: &K) {
        self.attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_start_again() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.next("a").as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.next("b").as_millis(), 100);
        backoff.reset(&"a");
        assert_eq!(backoff.next("a").as_millis(), 100);
        for _ in 0..100 {
            backoff.next("c");
        }
        assert_eq!(backoff.next("c").as_millis(), 1000);
    }
}
