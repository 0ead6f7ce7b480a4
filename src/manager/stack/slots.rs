//! Who may evaluate: few Stacks at once, and no namespace more than half of them. A namespace whose
//! Stacks evaluate for long waits for itself, and the others' Stacks do not wait for it.
//!
//! Nobody waits inside: who gets no slot comes again a little later, so that waiting Stacks do not
//! hold up the controller either. What was refused lately has precedence over who evaluates already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When to come again.
const WAIT: Duration = Duration::from_millis(200);
/// For how long a namespace that was refused counts as waiting: a little longer than [`WAIT`].
const WAITING: Duration = Duration::from_secs(1);

/// Slots for evaluations.
#[derive(Clone)]
pub(super) struct Slots {
    total: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// How many evaluations run, by namespace.
    running: HashMap<String, usize>,
    /// Namespaces with less than their share that were refused: when first, and when last.
    refused: HashMap<String, (Instant, Instant)>,
}

/// One evaluation, until it is dropped.
pub(super) struct Slot {
    slots: Slots,
    namespace: String,
}

impl Default for Slots {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self::of(cores.max(2))
    }
}

impl Slots {
    fn of(total: usize) -> Self {
        Self {
            total,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a namespace, or when to come again.
    pub(super) fn enter(&self, namespace: &str, now: Instant) -> Result<Slot, Duration> {
        let mut state = self.state();
        let share = (self.total / 2).max(1);
        if state.of(namespace) >= share {
            // It waits for itself only.
            return Err(WAIT);
        }
        if !state.may_run(namespace, self.total, share, now) {
            let refused = state.refused.entry(namespace.to_owned());
            refused.or_insert((now, now)).1 = now;
            return Err(WAIT);
        }
        state.refused.remove(namespace);
        *state.running.entry(namespace.to_owned()).or_default() += 1;
        Ok(Slot {
            slots: self.clone(),
            namespace: namespace.to_owned(),
        })
    }
}

impl State {
    /// How many evaluations of a namespace run.
    fn of(&self, namespace: &str) -> usize {
        self.running.get(namespace).copied().unwrap_or_default()
    }

    /// Whether it is the turn of a namespace that has less than its share.
    fn may_run(&mut self, namespace: &str, total: usize, share: usize, now: Instant) -> bool {
        self.refused
            .retain(|_, (_, last)| now.duration_since(*last) < WAITING);
        let all: usize = self.running.values().sum();
        if all >= total {
            return false;
        }
        let own = self.of(namespace);
        // The fewest first, then who waits longest.
        let since = self.refused.get(namespace).map_or(now, |(first, _)| *first);
        !self.refused.iter().any(|(other, (first, _))| {
            let running = self.of(other);
            other != namespace && running < share && (running, *first) < (own, since)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        if let Some(running) = state.running.get_mut(&self.namespace) {
            *running -= 1;
            if *running == 0 {
                state.running.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_namespace_has_half_of_the_slots() {
        let slots = Slots::of(4);
        let now = Instant::now();
        let mut held: Vec<Slot> = (0..2)
            .map(|_| slots.enter("a", now).ok().unwrap())
            .collect();
        assert!(slots.enter("a", now).is_err());
        held.push(slots.enter("b", now).ok().unwrap());
        assert!(slots.enter("a", now).is_err());
        held.push(slots.enter("b", now).ok().unwrap());
        assert!(slots.enter("c", now).is_err(), "all are taken");
        held.clear();
        assert!(slots.state().running.is_empty());
    }

    #[test]
    fn who_waits_longest_is_next_and_who_gave_up_is_forgotten() {
        let slots = Slots::of(2);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let a = slots.enter("a", at(0)).ok().unwrap();
        let b = slots.enter("b", at(0)).ok().unwrap();
        assert!(slots.enter("c", at(1)).is_err());
        assert!(slots.enter("a", at(2)).is_err());
        drop(a);
        // It is the turn of `c`, which has waited longer.
        assert!(slots.enter("a", at(3)).is_err());
        let c = slots.enter("c", at(201)).ok().unwrap();
        drop((b, c));
        // `a` does not come again; nobody waits for it.
        assert!(slots.enter("b", at(1900)).is_ok());
    }

    #[test]
    fn many_hostile_stacks_leave_room_for_others() {
        // Sixteen Stacks of each of three namespaces evaluate for ten seconds, again and again.
        let slots = Slots::of(2);
        let start = Instant::now();
        let mut held: Vec<(u64, Slot)> = Vec::new();
        let mut longest = 0;
        let mut asked = None;
        for tick in 0..3_000_u64 {
            let now = start + Duration::from_millis(100 * tick);
            held.retain(|(until, _)| *until > tick);
            for namespace in ["h0", "h1", "h2"] {
                for _ in 0..16 {
                    if let Ok(slot) = slots.enter(namespace, now) {
                        held.push((tick + 100, slot));
                    }
                }
            }
            if tick % 200 == 0 {
                asked = asked.or(Some(tick));
            }
            if let Some(since) = asked
                && slots.enter("victim", now).is_ok()
            {
                longest = longest.max(tick - since);
                asked = None;
            }
        }
        // Each of the others has its turn before at most: not sixteen turns each.
        assert!(longest <= 210, "{longest}");
    }
}
