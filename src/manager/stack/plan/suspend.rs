//! Stops the Servers of a stack that is suspended, users before what they use; a resume starts them
//! in the order in which they were created.

use std::collections::BTreeSet;

use super::forward::Walk;
use super::{Action, Key, State};
use pileus_stack::value::Value;

impl Walk<'_, '_> {
    /// Starts a Server of a stack that is resumed, or plans to stop one of a stack that is suspended.
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
                entry.set_state(Action::Resume, State::InProgress, "", now);
            }
            Some(Action::Suspend) => {
                self.to_stop
                    .push((key.clone(), objects.to_vec(), digest.to_owned()));
            }
            _ => {}
        }
    }

    /// Stops the Servers that no running Server uses.
    pub(super) fn stop_dependents_first(&mut self) {
        let now = self.pass.observed.now;
        let running: BTreeSet<Key> = self.to_stop.iter().map(|(key, ..)| key.clone()).collect();
        for (key, objects, digest) in std::mem::take(&mut self.to_stop) {
            let record = &mut self.pass.plan.record;
            let used = record.entries.iter().any(|(other, entry)| {
                let stopping = entry.action == Action::Suspend && entry.state == State::InProgress;
                entry.uses(&key) && (running.contains(other) || stopping)
            });
            if used {
                continue;
            }
            if let Some(entry) = record.entries.get_mut(&key) {
                entry.digest = digest;
                entry.set_state(Action::Suspend, State::InProgress, "", now);
            }
            self.apply_and_observe(&key, &objects, None);
        }
    }
}
