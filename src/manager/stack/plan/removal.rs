//! What goes, and in which order: users before what they use.

use super::required::Used;
use super::{Action, Entry, Key, Pass, State, Step, is_ours};
use kube::ResourceExt;
use pileus_stack::value::Value;
use std::collections::BTreeSet;

impl Pass<'_> {
    /// Removes everything, and ends the action once it is gone.
    pub(super) fn remove_all(&mut self) {
        self.remove_but(&BTreeSet::new());
        let ledger = &mut self.plan.ledger;
        if ledger.entries.is_empty() && ledger.is_busy() {
            let word = ledger.action.unwrap_or_default().word();
            ledger.goal = None;
            ledger.end(
                State::Complete,
                format!("Stack {word} completed successfully"),
            );
        }
    }

    /// Removes what is not among `kept`; each as soon as nothing else works with it. Whether
    /// nothing is left to remove.
    pub(super) fn remove_but(&mut self, kept: &BTreeSet<Key>) -> bool {
        let sums = super::required::sums(&self.plan.ledger, kept);
        // What has no object is gone at once, and what it used may follow.
        loop {
            let ledger = &self.plan.ledger;
            let used = Used::of(ledger, &sums);
            let goes = |key: &&Key| !kept.contains(*key) && !used.has(key);
            let free: Vec<Key> = ledger.entries.keys().filter(goes).cloned().collect();
            let before = self.plan.ledger.entries.len();
            for key in free {
                self.remove(&key);
            }
            if self.plan.ledger.entries.len() == before {
                break;
            }
        }
        self.plan
            .ledger
            .entries
            .keys()
            .all(|key| kept.contains(key))
    }

    /// Removes one incarnation, or goes on with it.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(entry) = self.plan.ledger.entries.get(key).cloned() else {
            return;
        };
        if self.waits_to_go(key, "pre-delete") {
            return;
        }
        let uid = self.stack.uid().unwrap_or_default();
        let live: Vec<_> = entry
            .objects
            .iter()
            .filter_map(|object| Some((object, self.seen.objects.get(object)?)))
            // What carries another's mark, or none any more, is not ours to remove, nor is what
            // another resource has now.
            .filter(|(object, live)| is_ours(live, &uid) && !self.is_shared(key, object))
            .collect();
        if entry.external || live.is_empty() {
            if self.waits_to_go(key, "post-delete") {
                return;
            }
            self.plan.ledger.entries.remove(key);
            return;
        }
        for (object, live) in live {
            if self.plan.steps.iter().any(|step| is_about(step, object)) {
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
        let now = self.seen.now;
        let reason = reason(&entry, self);
        if let Some(entry) = self.plan.ledger.entries.get_mut(key) {
            entry.set(Action::Delete, State::InProgress, reason, now);
        }
        // What the service account made is not watched.
        let again = if entry.by_account {
            super::pace(super::under_way(&self.plan.ledger), &entry, now)
        } else {
            std::time::Duration::from_secs(30)
        };
        self.again_in(again);
    }
}

/// Whether a step removes `object` already.
fn is_about(step: &Step, object: &super::Reference) -> bool {
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

/// What an object that does not go says of it.
fn reason(entry: &Entry, pass: &Pass<'_>) -> String {
    let live = entry
        .objects
        .last()
        .and_then(|object| pass.seen.objects.get(object));
    let Some(live) = live.filter(|live| !live["metadata"]["deletionTimestamp"].is_null()) else {
        // Why it could not be asked to go stays told until it goes.
        return match entry.action {
            Action::Delete => entry.reason.clone(),
            _ => String::new(),
        };
    };
    let ready = super::leaf::condition(live, "Ready");
    let said = ready.and_then(|ready| ready["message"].as_str().map(str::to_owned));
    let is_pileus = live["apiVersion"]
        .as_str()
        .is_some_and(|version| version.starts_with(pileus_api::GROUP));
    match said {
        Some(said) if is_pileus => said,
        // Other kinds do not say why they stay.
        _ => held(live),
    }
}

/// Which finalizers hold an object that is to go.
fn held(live: &Value) -> String {
    let all = live["metadata"]["finalizers"].as_array();
    let names = all.into_iter().flatten().filter_map(Value::as_str);
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() {
        return String::new();
    }
    let names = crate::list_names(names);
    format!("it is being deleted, and waits for its finalizers: {names}")
}
