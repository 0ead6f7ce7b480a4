//! The limit of work for evaluating one stack: one budget for the stack and its nested stacks, for
//! all rounds of the evaluation, and for functions, conditions and yaql together.
//!
//! A few lines of a template can cause any amount of work: nested functions double their arguments,
//! and groups contain groups. The engine serves many users, so the budget is fixed; it is much more
//! than a stack of the maximal size needs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Error, Result};

/// The budget of a stack, in bytes of results or the work of making them.
pub const BUDGET: usize = 256 << 20;

/// What is left of a budget. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    left: Arc<AtomicUsize>,
    stop: Stop,
    /// The patterns that were paid for: each is compiled once.
    patterns: Arc<Mutex<BTreeSet<String>>>,
}

/// Stops an evaluation from outside. Clones share it. The engine itself knows no time: its caller
/// decides how long an evaluation may take, and whether its result is wanted still.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Every evaluation with this stop ends with an error soon, whose result must not be used.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::stopped_by(Stop::default())
    }
}

impl Budget {
    /// A whole budget, until `stop`.
    #[must_use]
    pub fn stopped_by(stop: Stop) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(BUDGET)),
            stop,
            patterns: Arc::default(),
        }
    }

    /// Takes the cost of compiling a pattern from the budget, the first time it is used.
    pub(super) fn spend_pattern(&self, text: &str, cost: usize) -> Result<()> {
        let mut paid = self.patterns.lock().unwrap_or_else(PoisonError::into_inner);
        if paid.contains(text) {
            return Ok(());
        }
        self.spend(cost)?;
        paid.insert(text.to_owned());
        Ok(())
    }

    /// Takes `cost` from the budget.
    ///
    /// # Errors
    /// When less is left, then the budget is used up; or when the evaluation was stopped.
    pub fn spend(&self, cost: usize) -> Result<()> {
        if self.stop.is_stopped() {
            return Err(Error::new("the evaluation was stopped"));
        }
        let rest = |left: usize| left.checked_sub(cost);
        // The order of concurrent calls does not matter.
        let spent = (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        if spent.is_err() {
            self.left.store(0, Ordering::Relaxed);
        }
        spent.map(drop).map_err(|_| {
            Error::new("evaluating the template costs too much: its functions make too much")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_budget() {
        let one = Budget::default();
        let other = one.clone();
        assert!(one.spend(BUDGET / 2).is_ok() && other.spend(BUDGET / 2).is_ok());
        assert!(one.spend(0).is_ok() && one.spend(1).is_err());
        let fresh = Budget::default();
        assert!(fresh.spend(BUDGET + 1).is_err());
        assert!(
            fresh.spend(1).is_err(),
            "after an error the budget is used up"
        );
    }

    #[test]
    fn what_is_stopped_spends_nothing_more() {
        let stop = Stop::default();
        let budget = Budget::stopped_by(stop.clone());
        assert!(budget.spend(1).is_ok());
        stop.now();
        let error = budget.clone().spend(0);
        assert!(error.is_err_and(|error| error.message.contains("stopped")));
    }

    #[test]
    fn a_pattern_is_paid_for_once() {
        let budget = Budget::default();
        for _ in 0..3 {
            assert!(budget.spend_pattern("a+", BUDGET / 2 + 1).is_ok());
        }
        assert!(budget.spend_pattern("b+", BUDGET / 2 + 1).is_err());
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod hostile;
