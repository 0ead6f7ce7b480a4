//! Deletes resources in order: users before what they use.

use super::requirements::InUse;
use super::{Action, Entry, Key, Pass, State, Step, is_ours};
use kube::ResourceExt;
use pileus_stack::value::Value;
use std::collections::BTreeSet;

impl Pass<'_> {
    /// Removes everything, and ends the action once nothing exists any more.
    pub(super) fn remove_all(&mut self) {
        self.remove_except(&BTreeSet::new());
        let record = &mut self.plan.record;
        if record.entries.is_empty() && record.is_busy() {
            let word = record.action.unwrap_or_default().heat_name();
            record.target_digest = None;
            record.end(
                State::Complete,
                format!("Stack {word} completed successfully"),
            );
        }
    }

    /// Removes everything except `kept`, each as soon as nothing else uses it. Returns whether
    /// nothing is left to remove.
    pub(super) fn remove_except(&mut self, kept: &BTreeSet<Key>) -> bool {
        let sums = super::requirements::group_checksums(&self.plan.record, kept);
        // Resources without objects are removed at once; then what they used is free, too.
        loop {
            let record = &self.plan.record;
            let used = InUse::of(record, &sums);
            let goes = |key: &&Key| !kept.contains(*key) && !used.has(key);
            let free: Vec<Key> = record.entries.keys().filter(goes).cloned().collect();
            let before = self.plan.record.entries.len();
            for key in free {
                self.remove(&key);
            }
            if self.plan.record.entries.len() == before {
                break;
            }
        }
        self.plan
            .record
            .entries
            .keys()
            .all(|key| kept.contains(key))
    }

    /// Removes one incarnation, or continues to.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(entry) = self.plan.record.entries.get(key).cloned() else {
            return;
        };
        if self.waits_at_delete_hook(key, "pre-delete") {
            return;
        }
        let uid = self.stack.uid().unwrap_or_default();
        let live: Vec<_> = entry
            .objects
            .iter()
            .filter_map(|object| Some((object, self.observed.objects.get(object)?)))
            // Objects without this Stack's label are not deleted, nor are objects that another
            // resource has taken over.
            .filter(|(object, live)| is_ours(live, &uid) && !self.is_shared(key, object))
            .collect();
        if entry.external || live.is_empty() {
            if self.waits_at_delete_hook(key, "post-delete") {
                return;
            }
            self.plan.record.entries.remove(key);
            return;
        }
        for (object, live) in live {
            if self.plan.steps.iter().any(|step| removes(step, object)) {
                continue;
            }
            let by_account = entry.by_account;
            if entry.retain {
                let live = live.clone();
                self.plan.steps.push(Step::Release { live, by_account });
            } else if live["metadata"]["deletionTimestamp"].is_null() {
                let uid = live["metadata"]["uid"].as_str().map(str::to_owned);
                self.plan.steps.push(Step::Delete {
                    object: object.clone(),
                    uid,
                    by_account,
                });
            }
        }
        let now = self.observed.now;
        let reason = deletion_reason(&entry, self);
        if let Some(entry) = self.plan.record.entries.get_mut(key) {
            entry.set_state(Action::Delete, State::InProgress, reason, now);
        }
        // Objects of a service account are not watched.
        let requeue = if entry.by_account {
            super::poll_interval(super::unwatched_in_progress(&self.plan.record), &entry, now)
        } else {
            std::time::Duration::from_secs(30)
        };
        self.requeue_in(requeue);
    }
}

/// Whether a step removes `object` already.
fn removes(step: &Step, object: &super::Reference) -> bool {
    match step {
        Step::Delete { object: other, .. } => other == object,
        Step::Release { live, .. } => {
            let mut other = super::Reference::of(live);
            if object.namespace.is_none() {
                other.namespace = None;
            }
            other == *object
        }
        Step::Apply { .. } => false,
    }
}

/// Why an object that is being deleted still exists.
fn deletion_reason(entry: &Entry, pass: &Pass<'_>) -> String {
    let live = entry
        .objects
        .last()
        .and_then(|object| pass.observed.objects.get(object));
    let Some(live) = live.filter(|live| !live["metadata"]["deletionTimestamp"].is_null()) else {
        // The error of a refused delete request stays reported until one succeeds.
        return match entry.action {
            Action::Delete => entry.reason.clone(),
            _ => String::new(),
        };
    };
    let ready = super::resource_state::condition(live, "Ready");
    let message = ready.and_then(|ready| ready["message"].as_str().map(str::to_owned));
    let is_pileus = live["apiVersion"]
        .as_str()
        .is_some_and(|version| version.starts_with(pileus_api::GROUP));
    match message {
        Some(message) if is_pileus => message,
        // Other kinds do not report why they still exist.
        _ => finalizer_message(live),
    }
}

/// Names the finalizers of an object that is being deleted.
fn finalizer_message(live: &Value) -> String {
    let all = live["metadata"]["finalizers"].as_array();
    let names = all.into_iter().flatten().filter_map(Value::as_str);
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return String::new();
    }
    let names = crate::list_some(names);
    format!("it is being deleted, and waits for its finalizers: {names}")
}
