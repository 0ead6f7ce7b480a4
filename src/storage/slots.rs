//! Who may download now: a number of downloads at once, fewer of one namespace, so that images
//! which come slowly hold up only the namespace that they belong to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limits;

/// The slots of one host.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug)]
struct State {
    most: usize,
    most_of_one: usize,
    /// Downloads that run, by namespace.
    running: BTreeMap<String, usize>,
    /// Who waits, by turn.
    waiting: BTreeMap<u64, String>,
    next: u64,
}

impl State {
    fn running(&self, namespace: &str) -> usize {
        self.running.get(namespace).copied().unwrap_or(0)
    }

    /// The turn that comes next: of the namespaces that may run more, the one that has the fewest
    /// running, and of its turns the first.
    fn next_turn(&self) -> Option<u64> {
        if self.running.values().sum::<usize>() >= self.most {
            return None;
        }
        let may_run = |(_, namespace): &(&u64, &String)| self.running(namespace) < self.most_of_one;
        let waiting = self.waiting.iter().filter(may_run);
        waiting
            .min_by_key(|(turn, namespace)| (self.running(namespace), **turn))
            .map(|(turn, _)| *turn)
    }
}

/// A slot, until it is dropped.
#[must_use]
pub(super) struct Slot {
    slots: Arc<Slots>,
    namespace: String,
}

/// A turn that waits, until it is dropped.
struct Turn {
    slots: Arc<Slots>,
    turn: u64,
}

impl Slots {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                most: limits.downloads.max(1),
                most_of_one: limits.downloads_per_namespace.max(1),
                running: BTreeMap::new(),
                waiting: BTreeMap::new(),
                next: 0,
            }),
            ended: Notify::new(),
        })
    }

    /// Waits for a slot of `namespace`.
    pub(super) async fn acquire(self: &Arc<Self>, namespace: &str) -> Slot {
        let turn = {
            let mut state = self.lock();
            let turn = state.next;
            state.next += 1;
            state.waiting.insert(turn, namespace.to_owned());
            turn
        };
        let waits = Turn {
            slots: self.clone(),
            turn,
        };
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // From here on no end is missed.
            ended.as_mut().enable();
            {
                let mut state = self.lock();
                if state.next_turn() == Some(waits.turn) {
                    state.waiting.remove(&waits.turn);
                    *state.running.entry(namespace.to_owned()).or_default() += 1;
                    break;
                }
            }
            ended.await;
        }
        Slot {
            slots: self.clone(),
            namespace: namespace.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.slots.lock().waiting.remove(&self.turn);
        // Whoever comes next now may have waited behind this one.
        self.slots.ended.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        if let Some(running) = state.running.get_mut(&self.namespace) {
            *running = running.saturating_sub(1);
        }
        state.running.retain(|_, running| *running > 0);
        drop(state);
        self.slots.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn slots(downloads: usize, downloads_per_namespace: usize) -> Arc<Slots> {
        Slots::new(&Limits {
            downloads,
            downloads_per_namespace,
            ..Limits::default()
        })
    }

    #[tokio::test]
    async fn one_namespace_never_takes_all_slots() {
        let slots = slots(3, 2);
        let (first, _second) = (slots.acquire("a").await, slots.acquire("a").await);
        let mut third = Box::pin(slots.acquire("a"));
        assert!((&mut third).now_or_never().is_none());
        let _other = slots.acquire("b").now_or_never().unwrap();
        drop(first);
        let _third = third.await;
        assert!(slots.acquire("c").now_or_never().is_none(), "all are taken");
    }

    #[tokio::test]
    async fn the_namespace_with_the_fewest_comes_first_and_who_gave_up_holds_nobody_up() {
        let slots = slots(2, 2);
        let (first, second) = (slots.acquire("a").await, slots.acquire("a").await);
        let mut again = Box::pin(slots.acquire("a"));
        let mut gone = Box::pin(slots.acquire("b"));
        let mut other = Box::pin(slots.acquire("b"));
        for waits in [&mut again, &mut gone, &mut other] {
            assert!(waits.now_or_never().is_none());
        }
        drop(gone);
        drop(first);
        assert!((&mut again).now_or_never().is_none());
        let _other = other.now_or_never().unwrap();
        drop(second);
        let _again = again.now_or_never().unwrap();
    }
}
