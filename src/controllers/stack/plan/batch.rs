//! Groups that change a few members at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use super::forward::Walk;
use super::{Action, State, since};
use crate::stack::tree::{self, Batch};

/// Longest pause between two batches, in seconds: one that is longer than a stack may take
/// would only be a failure.
const LONGEST_PAUSE: f64 = 86_400.0;

impl Walk<'_, '_> {
    /// Whether a member of a group that changes a few at a time may begin now.
    pub(super) fn may_join(&mut self, batches: &[Batch], makes: bool) -> bool {
        let now = self.pass.seen.now;
        let ledger = &self.pass.plan.ledger;
        let mut wait = None;
        let may = batches.iter().all(|batch| {
            // The members that a growing group gets are made as in an update of it.
            let first = ledger.action == Some(Action::Create) && makes;
            let policy = if first { batch.create } else { batch.update };
            let Some((size, pause)) = policy else {
                return true;
            };
            let prefix = format!("{}{}", batch.group, tree::SEPARATOR);
            let touched = ledger.entries.iter().filter(|((path, _), entry)| {
                path.starts_with(&prefix) && entry.since >= ledger.started
            });
            let member = |path: &str| {
                let inner = path.strip_prefix(&prefix).unwrap_or_default();
                let name = inner.split(tree::SEPARATOR).next().unwrap_or_default();
                format!("{prefix}{name}")
            };
            let mut busy = BTreeSet::new();
            let mut last = None;
            for ((path, _), entry) in touched {
                let member = member(path);
                if member == batch.member {
                    return true;
                }
                match entry.state {
                    State::InProgress => drop(busy.insert(member)),
                    _ => last = last.max(Some(entry.since)),
                }
            }
            let rested = last.map_or(Duration::MAX, |last| since(last, now));
            let left = Duration::from_secs_f64(pause.min(LONGEST_PAUSE)).saturating_sub(rested);
            if !left.is_zero() && busy.is_empty() {
                wait = Some(left);
            }
            busy.len() < size && left.is_zero()
        });
        if let Some(wait) = wait {
            self.pass.again_in(wait);
        }
        may
    }
}
