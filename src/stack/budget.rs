//! The limit of work for evaluating one stack: one budget for the stack and its nested stacks, for
//! all rounds of the evaluation, and for functions, conditions and yaql together.
//!
//! A few lines of a template can cause any amount of work: nested functions double their arguments,
//! and groups contain groups. The engine serves many users, so the budget is fixed; it is much more
//! than a stack of the maximal size needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Error, Result};

/// The budget of a stack, in bytes of results or the work of making them.
pub const BUDGET: usize = 256 << 20;

/// What is left of a budget. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(BUDGET)))
    }
}

impl Budget {
    /// Takes `cost` from the budget.
    ///
    /// # Errors
    /// When less is left; then the budget is used up.
    pub fn spend(&self, cost: usize) -> Result<()> {
        let rest = |left: usize| left.checked_sub(cost);
        // The order of concurrent calls does not matter.
        let spent = (self.0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        if spent.is_err() {
            self.0.store(0, Ordering::Relaxed);
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
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod hostile;
