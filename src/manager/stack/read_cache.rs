//! What service accounts have made, as it was last seen.
//!
//! Nothing tells of its changes: watching would take rights that few accounts have. So it is
//! remembered what the API server said when it was made, changed or read, and that is asked
//! again only where the answer may matter: while a resource is under way, the seldomer the
//! longer it takes and the more of them there are; when an action begins, when it is checked,
//! and now and then.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::managed_fields::handed_over;
use super::record::{Entry, Reference, State};
use pileus_stack::value::Value;

/// How long what has been seen of a finished resource is good for. Hundreds of stacks with
/// hundreds of objects each are then some dozens of reads a second at most.
const GOOD_FOR: Duration = Duration::from_mins(30);

struct Item {
    live: Value,
    observed: Instant,
    /// It is the answer to a write that no pass has looked at yet.
    is_news: bool,
    /// All that the manager has said of it belongs to what it applies.
    handed_over: bool,
}

/// What was seen, by the Stack's uid.
#[derive(Default)]
pub struct ReadCache {
    items: Mutex<HashMap<String, BTreeMap<Reference, Item>>>,
    /// The digest of new sources for which everything was last read, by the Stack's uid.
    turned: Mutex<HashMap<String, String>>,
}

impl ReadCache {
    fn stacks(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<Reference, Item>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turned(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a Stack has other sources than when everything was last read for such.
    pub fn is_new(&self, uid: &str, digest: &str) -> bool {
        self.turned().get(uid).is_none_or(|last| last != digest)
    }

    /// Notes that everything was read for these sources.
    pub fn note_new(&self, uid: &str, digest: &str) {
        self.turned().insert(uid.to_owned(), digest.to_owned());
    }

    /// Notes what the API server said of an object, in answer to a write or to a read.
    pub fn note(&self, uid: &str, object: &Reference, live: &Value, is_news: bool) {
        let mut live = live.clone();
        let fields = &live["metadata"]["managedFields"];
        let handed_over = fields.is_array() && handed_over(fields).is_none();
        if let Some(metadata) = live["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        let item = Item {
            live,
            observed: Instant::now(),
            is_news,
            handed_over,
        };
        let mut stacks = self.stacks();
        let known = stacks.entry(uid.to_owned()).or_default();
        known.insert(object.clone(), item);
    }

    /// What is known of an entry's object, where that will do. What is under way is looked at
    /// again after `pace`.
    pub fn recall(
        &self,
        uid: &str,
        entry: &Entry,
        object: &Reference,
        pace: Duration,
    ) -> Option<Value> {
        let mut stacks = self.stacks();
        let item = stacks.get_mut(uid)?.get_mut(object)?;
        let good = if entry.state == State::Complete {
            item.observed.elapsed() < GOOD_FOR && super::plan::is_whole(&item.live, entry)
        } else {
            // A pass that comes a little early does not wait for another whole pace.
            std::mem::take(&mut item.is_news) || item.observed.elapsed() < pace * 3 / 4
        };
        good.then(|| item.live.clone())
    }

    /// Whether all that the manager has said of an object is known to belong to what it applies.
    pub fn is_handed_over(&self, uid: &str, object: &Reference) -> bool {
        let stacks = self.stacks();
        let item = stacks.get(uid).and_then(|known| known.get(object));
        item.is_some_and(|item| item.handed_over)
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
        self.turned().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use pileus_stack::value::json;

    use super::*;
    use pileus_api::names::STACK_DIGEST_ANNOTATION;

    #[test]
    fn the_answer_to_a_write_is_looked_at_once_and_a_finished_resource_is_remembered() {
        let known = ReadCache::default();
        let live = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "annotations": {STACK_DIGEST_ANNOTATION: "d"}}});
        let object = Reference::of(&live);
        let mut entry = Entry {
            digest: "d".into(),
            ..Entry::default()
        };
        let recall = |uid: &str, entry: &Entry| known.recall(uid, entry, &object, Duration::ZERO);
        known.note("uid", &object, &live, true);
        assert_eq!(recall("uid", &entry), Some(live.clone()));
        // It is still under way: what it has become must be asked, but not all the time.
        let hour = Duration::from_hours(1);
        let early = known.recall("uid", &entry, &object, hour);
        assert_eq!(early, Some(live.clone()));
        assert_eq!(recall("uid", &entry), None);
        entry.state = State::Complete;
        assert_eq!(recall("uid", &entry), Some(live.clone()));
        // Another is wanted now.
        entry.digest = "e".into();
        assert_eq!(recall("uid", &entry), None);
        assert_eq!(recall("other", &entry), None);
        entry.digest = "d".into();
        known.forget("uid", &object);
        assert_eq!(recall("uid", &entry), None);
    }
    #[test]
    fn new_sources_are_new_once() {
        let recall = ReadCache::default();
        assert!(recall.is_new("uid", "a"));
        recall.note_new("uid", "a");
        assert!(!recall.is_new("uid", "a"));
        assert!(recall.is_new("uid", "b") && recall.is_new("other", "a"));
        recall.forget_all("uid");
        assert!(recall.is_new("uid", "a"));
    }
}
