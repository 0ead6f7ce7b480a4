//! What evaluating one stack may cost: one account for the stack and all stacks inside of it,
//! for every round in which values become known, for functions, conditions and yaql alike.
//!
//! A few lines of a template can ask for any amount of work: functions in functions double
//! what they are given, groups stand in groups. The engine works for many people, so what one
//! of them may have is fixed; it is much more than a stack of the greatest size needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Error, Result};

/// What a stack may cost, in bytes that are made, or as much work as making them.
pub const BUDGET: usize = 256 << 20;

/// What may still be spent. Clones spend from the same account.
#[derive(Debug, Clone)]
pub struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(BUDGET)))
    }
}

impl Budget {
    /// Takes `cost` from what is left.
    ///
    /// # Errors
    /// When there is less; nothing is left then.
    pub fn pay(&self, cost: usize) -> Result<()> {
        let rest = |left: usize| left.checked_sub(cost);
        // Nobody waits for what this tells: the order of payments does not matter.
        let paid = (self.0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        if paid.is_err() {
            self.0.store(0, Ordering::Relaxed);
        }
        paid.map(drop).map_err(|_| {
            Error::new("evaluating the template costs too much: its functions make too much")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_spend_from_one_account() {
        let one = Budget::default();
        let other = one.clone();
        assert!(one.pay(BUDGET / 2).is_ok() && other.pay(BUDGET / 2).is_ok());
        assert!(one.pay(0).is_ok() && one.pay(1).is_err());
        let fresh = Budget::default();
        assert!(fresh.pay(BUDGET + 1).is_err());
        assert!(fresh.pay(1).is_err(), "who has overspent is done");
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod hostile;
