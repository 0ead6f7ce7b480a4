//! Servers of a suspended stack are stopped, users before what they use, and started again in
//! the order in which they were made.

use std::collections::BTreeSet;

use super::forward::Walk;
use super::{Action, Key, State};
use pileus_stack::value::Value;

impl Walk<'_, '_> {
    /// Stops or starts what a suspended or resumed stack has running.
    pub(super) fn suspend(&mut self, key: &Key, objects: &[Value], digest: &str) {
        let now = self.pass.observed.now;
        let action = self.pass.plan.record.action;
        let Some(entry) = self.pass.plan.record.entries.get_mut(key) else {
            return;
        };
        if entry.digest == digest || entry.state != State::Complete {
            return;
        }
        match action {
            Some(Action::Resume) => {
                digest.clone_into(&mut entry.digest);
                entry.set(Action::Resume, State::InProgress, "", now);
            }
            Some(Action::Suspend) => {
                self.to_stop
                    .push((key.clone(), objects.to_vec(), digest.to_owned()));
            }
            _ => {}
        }
    }

    /// Stops what nothing that still runs works with.
    pub(super) fn stop_users_first(&mut self) {
        let now = self.pass.observed.now;
        let running: BTreeSet<Key> = self.to_stop.iter().map(|(key, ..)| key.clone()).collect();
        for (key, objects, digest) in std::mem::take(&mut self.to_stop) {
            let record = &mut self.pass.plan.record;
            let used = record.entries.iter().any(|(other, entry)| {
                let stopping = entry.action == Action::Suspend && entry.state == State::InProgress;
                entry.is_with(&key) && (running.contains(other) || stopping)
            });
            if used {
                continue;
            }
            if let Some(entry) = record.entries.get_mut(&key) {
                entry.digest = digest;
                entry.set(Action::Suspend, State::InProgress, "", now);
            }
            self.push_on(&key, &objects, None);
        }
    }
}
