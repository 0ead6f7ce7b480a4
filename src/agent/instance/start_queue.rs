//! The order in which guests are resumed when many are started at once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// The starts that are under way, in the order in which they were asked for.
///
/// A guest that runs uses processor time that the QEMUs which are still being set up need. So a
/// guest that is ready waits until the starts that were requested before its resume have ended:
/// the last guest of a burst runs sooner, and the first hardly later, because its resume would
/// wait behind their starts at the hypervisor anyway.
#[derive(Debug, Default)]
pub struct StartQueue {
    turns: Mutex<Turns>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Turns {
    next: u64,
    pending: BTreeSet<u64>,
}

/// A start that is under way, until it is dropped.
#[derive(Debug)]
pub struct StartTurn<'a> {
    starts: &'a StartQueue,
    turn: u64,
}

impl StartQueue {
    /// Takes the next turn.
    pub fn begin(&self) -> StartTurn<'_> {
        let mut turns = self.lock();
        let turn = turns.next;
        turns.next += 1;
        turns.pending.insert(turn);
        StartTurn { starts: self, turn }
    }

    /// Waits until the starts that are under way now have ended, in success or not, but no
    /// longer than `timeout`: one that hangs must not block the others for ever. Returns
    /// whether there was anything to wait for.
    pub async fn wait_for_earlier(&self, timeout: Duration) -> bool {
        let next = self.lock().next;
        let all = async {
            let mut waited = false;
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                // From here on no end is missed.
                ended.as_mut().enable();
                if self.lock().pending.first().is_none_or(|turn| *turn >= next) {
                    return waited;
                }
                waited = true;
                ended.await;
            }
        };
        tokio::time::timeout(timeout, all).await.unwrap_or(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StartTurn<'_> {
    fn drop(&mut self) {
        self.starts.lock().pending.remove(&self.turn);
        self.starts.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_guest_waits_for_the_starts_before_it_and_not_for_later_ones() {
        let starts = StartQueue::default();
        assert!(!starts.wait_for_earlier(LONG).await);
        let (first, second) = (starts.begin(), starts.begin());
        let mut waits = Box::pin(starts.wait_for_earlier(LONG));
        assert!((&mut waits).now_or_never().is_none());
        let later = starts.begin();
        drop(first);
        assert!((&mut waits).now_or_never().is_none());
        drop(second);
        assert!(waits.await);
        drop(later);
    }

    #[tokio::test]
    async fn a_start_that_hangs_does_not_block_the_others() {
        let starts = StartQueue::default();
        let _hangs = starts.begin();
        assert!(starts.wait_for_earlier(Duration::from_millis(1)).await);
    }
}
