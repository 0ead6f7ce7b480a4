//! What an expression may cost, and what its steps do.
//!
//! Whatever takes time is charged before it is done, in proportion to the work of the worst case:
//! so what is left of the budget bounds the time that is left, whoever writes the expression.

use std::cell::Cell;

use crate::budget::Budget;
use crate::regex_cache::CompiledPattern;
use crate::{Error, Result};

/// How many values an expression may use.
const BUDGET: usize = 2_000_000;
/// What each of them costs from the stack's budget.
const VALUE: usize = 32;
/// The cost in values of looking for a pattern once, when it may backtrack.
const BACKTRACKING: usize = 200;
/// The cost when it does not, next to that of the text's length.
const SEARCH: usize = 4;
/// How many bytes of text are walked for the cost of one value.
const BYTES: usize = 64;
/// How much more a large pattern costs.
const LARGE: usize = 16;
/// The cost from the stack's budget of compiling a pattern.
const COMPILE: usize = 64 << 10;
/// The same for a large one; this is what it takes in memory, at most.
const COMPILE_LARGE: usize = 10 << 20;

/// The budget of an expression, and of the stack that it stands in.
pub(super) struct Meter<'b> {
    left: Cell<usize>,
    stack: &'b Budget,
}

impl<'b> Meter<'b> {
    /// That of a new expression.
    pub(super) fn of(stack: &'b Budget) -> Self {
        Self {
            left: Cell::new(BUDGET),
            stack,
        }
    }

    /// Takes the cost of this number of values.
    pub(super) fn spend(&self, cost: usize) -> Result<()> {
        let left = self.left.get().checked_sub(cost);
        self.left.set(left.unwrap_or(0));
        if left.is_none() {
            return Err(Error::new("the expression costs too much"));
        }
        self.stack.spend(cost.saturating_mul(VALUE))
    }

    /// Takes the cost of walking this many bytes of text.
    pub(super) fn walk(&self, bytes: usize) -> Result<()> {
        self.spend(bytes / BYTES)
    }

    /// Takes the cost of compiling a pattern, once for each stack.
    pub(super) fn compile(&self, text: &str, large: bool) -> Result<()> {
        let cost = if large { COMPILE_LARGE } else { COMPILE };
        self.stack.spend_pattern(text, cost)
    }

    /// Takes the cost of looking for a pattern once in a text of this many bytes.
    pub(super) fn search(&self, by: &CompiledPattern, bytes: usize) -> Result<()> {
        if bytes > by.longest_text() {
            return Err(Error::new(format!(
                "the text has {bytes} bytes, and this pattern is matched with {} at most",
                by.longest_text()
            )));
        }
        let base = if by.backtracks { BACKTRACKING } else { SEARCH };
        let factor = if by.large { LARGE } else { 1 };
        self.spend(base + bytes.saturating_mul(factor) / BYTES)
    }
}
