//! What service accounts have made, as it was last seen.
//!
//! Nothing tells of its changes: watching would take rights that few accounts have. So it is
//! remembered what the API server said when it was made, changed or read, and that is asked
//! again only where the answer may matter: while a resource is under way, when an action
//! begins, when it is checked, and now and then.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ledger::{Entry, Reference, State};

/// How long what has been seen of a finished resource is good for. Hundreds of stacks with
/// hundreds of objects each are then some dozens of reads a second at most.
const GOOD_FOR: Duration = Duration::from_mins(30);

struct Item {
    live: Value,
    seen: Instant,
    /// It is the answer to a write that no pass has looked at yet.
    is_news: bool,
}

/// What was seen, by the Stack's uid.
#[derive(Default)]
pub struct Recall(Mutex<HashMap<String, BTreeMap<Reference, Item>>>);

impl Recall {
    fn stacks(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<Reference, Item>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the API server said of an object, in answer to a write or to a read.
    pub fn note(&self, uid: &str, object: &Reference, live: &Value, is_news: bool) {
        let mut live = live.clone();
        if let Some(metadata) = live["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        let item = Item {
            live,
            seen: Instant::now(),
            is_news,
        };
        let mut stacks = self.stacks();
        let known = stacks.entry(uid.to_owned()).or_default();
        known.insert(object.clone(), item);
    }

    /// What is known of an entry's object, where that will do.
    pub fn recall(&self, uid: &str, entry: &Entry, object: &Reference) -> Option<Value> {
        let mut stacks = self.stacks();
        let item = stacks.get_mut(uid)?.get_mut(object)?;
        let good = if entry.state == State::Complete {
            item.seen.elapsed() < GOOD_FOR && super::plan::is_whole(&item.live, entry)
        } else {
            std::mem::take(&mut item.is_news)
        };
        good.then(|| item.live.clone())
    }

    /// Forgets one object: it goes, or is not what was thought.
    pub fn forget(&self, uid: &str, object: &Reference) {
        if let Some(known) = self.stacks().get_mut(uid) {
            known.remove(object);
        }
    }

    /// Forgets all of a Stack.
    pub fn forget_all(&self, uid: &str) {
        self.stacks().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;
    use crate::api::names::STACK_DIGEST_ANNOTATION;

    #[test]
    fn the_answer_to_a_write_is_looked_at_once_and_a_finished_resource_is_remembered() {
        let recall = Recall::default();
        let live = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "annotations": {STACK_DIGEST_ANNOTATION: "d"}}});
        let object = Reference::of(&live);
        let mut entry = Entry {
            digest: "d".into(),
            ..Entry::default()
        };
        recall.note("uid", &object, &live, true);
        assert_eq!(recall.recall("uid", &entry, &object), Some(live.clone()));
        // It is still under way: what it has become must be asked.
        assert_eq!(recall.recall("uid", &entry, &object), None);
        entry.state = State::Complete;
        assert_eq!(recall.recall("uid", &entry, &object), Some(live.clone()));
        // Another is wanted now.
        entry.digest = "e".into();
        assert_eq!(recall.recall("uid", &entry, &object), None);
        assert_eq!(recall.recall("other", &entry, &object), None);
        entry.digest = "d".into();
        recall.forget("uid", &object);
        assert_eq!(recall.recall("uid", &entry, &object), None);
    }
}
