//! A cache of objects that were made with the rights of service accounts.
//!
//! These objects are not watched, because a watch needs rights that few accounts have. So the
//! last answer of the API server to a create, an update or a read is kept. An object is read
//! again only where the answer may matter: while its resource is in progress (less often the
//! longer that takes and the more such objects there are), when an action begins, when the
//! stack is checked, and after [`MAX_AGE`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::managed_fields::migrated_fields;
use super::record::{Entry, Reference, State};
use pileus_stack::value::Value;

/// How long the cached object of a complete resource is used. For hundreds of stacks with
/// hundreds of objects each this gives some dozens of reads per second at most.
const MAX_AGE: Duration = Duration::from_mins(30);

struct CachedObject {
    live: Value,
    read_at: Instant,
    /// It is the answer to a write that no pass has used yet.
    is_unused_answer: bool,
    /// Its managed fields do not have to be migrated to server-side apply (any more).
    fields_migrated: bool,
}

/// Objects that were made with the rights of service accounts, by the Stack's uid.
#[derive(Default)]
pub struct ReadCache {
    objects: Mutex<HashMap<String, BTreeMap<Reference, CachedObject>>>,
    /// The digest of the new sources for which all objects were last read, by the Stack's uid.
    sources: Mutex<HashMap<String, String>>,
}

impl ReadCache {
    fn stacks(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<Reference, CachedObject>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all objects have not been read yet for the new sources with this digest.
    pub fn has_new_sources(&self, uid: &str, digest: &str) -> bool {
        self.sources().get(uid).is_none_or(|last| last != digest)
    }

    /// Notes that all objects were read for these sources.
    pub fn note_sources(&self, uid: &str, digest: &str) {
        self.sources().insert(uid.to_owned(), digest.to_owned());
    }

    /// Keeps an object that the API server returned: for a write if `is_write`, for a read
    /// otherwise.
    pub fn insert(&self, uid: &str, object: &Reference, live: &Value, is_write: bool) {
        let mut live = live.clone();
        let fields = &live["metadata"]["managedFields"];
        let fields_migrated = fields.is_array() && migrated_fields(fields).is_none();
        if let Some(metadata) = live["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        let cached = CachedObject {
            live,
            read_at: Instant::now(),
            is_unused_answer: is_write,
            fields_migrated,
        };
        let mut stacks = self.stacks();
        let known = stacks.entry(uid.to_owned()).or_default();
        known.insert(object.clone(), cached);
    }

    /// The cached object of an entry, unless it must be read again. The object of a resource
    /// that is in progress is read again after `interval`.
    pub fn get(
        &self,
        uid: &str,
        entry: &Entry,
        object: &Reference,
        interval: Duration,
    ) -> Option<Value> {
        let mut stacks = self.stacks();
        let cached = stacks.get_mut(uid)?.get_mut(object)?;
        let is_valid = if entry.state == State::Complete {
            cached.read_at.elapsed() < MAX_AGE && super::plan::is_up_to_date(&cached.live, entry)
        } else {
            // A pass that comes a little early must not wait for another whole interval.
            std::mem::take(&mut cached.is_unused_answer)
                || cached.read_at.elapsed() < interval * 3 / 4
        };
        is_valid.then(|| cached.live.clone())
    }

    /// Whether the managed fields of an object are known to be migrated to server-side apply.
    pub fn has_migrated_fields(&self, uid: &str, object: &Reference) -> bool {
        let stacks = self.stacks();
        let cached = stacks.get(uid).and_then(|known| known.get(object));
        cached.is_some_and(|cached| cached.fields_migrated)
    }

    /// Forgets one object: it is being changed or deleted.
    pub fn forget(&self, uid: &str, object: &Reference) {
        if let Some(known) = self.stacks().get_mut(uid) {
            known.remove(object);
        }
    }

    /// Forgets everything about a Stack.
    pub fn forget_all(&self, uid: &str) {
        self.stacks().remove(uid);
        self.sources().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use pileus_stack::value::json;

    use super::*;
    use pileus_api::names::STACK_DIGEST_ANNOTATION;

    #[test]
    fn the_answer_to_a_write_is_used_once_and_a_complete_resource_stays_cached() {
        let cache = ReadCache::default();
        let live = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "annotations": {STACK_DIGEST_ANNOTATION: "d"}}});
        let object = Reference::of(&live);
        let mut entry = Entry {
            digest: "d".into(),
            ..Entry::default()
        };
        let get = |uid: &str, entry: &Entry| cache.get(uid, entry, &object, Duration::ZERO);
        cache.insert("uid", &object, &live, true);
        assert_eq!(get("uid", &entry), Some(live.clone()));
        // It is still in progress: it must be read again, but not in every pass.
        let hour = Duration::from_hours(1);
        let early = cache.get("uid", &entry, &object, hour);
        assert_eq!(early, Some(live.clone()));
        assert_eq!(get("uid", &entry), None);
        entry.state = State::Complete;
        assert_eq!(get("uid", &entry), Some(live.clone()));
        // The entry describes a changed object now.
        entry.digest = "e".into();
        assert_eq!(get("uid", &entry), None);
        assert_eq!(get("other", &entry), None);
        entry.digest = "d".into();
        cache.forget("uid", &object);
        assert_eq!(get("uid", &entry), None);
    }

    #[test]
    fn new_sources_are_new_once() {
        let cache = ReadCache::default();
        assert!(cache.has_new_sources("uid", "a"));
        cache.note_sources("uid", "a");
        assert!(!cache.has_new_sources("uid", "a"));
        assert!(cache.has_new_sources("uid", "b") && cache.has_new_sources("other", "a"));
        cache.forget_all("uid");
        assert!(cache.has_new_sources("uid", "a"));
    }
}
