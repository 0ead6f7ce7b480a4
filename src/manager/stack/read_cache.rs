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
use pileus_stack::value::{Value, weight};

/// How long the cached object of a complete resource is used. For hundreds of stacks with
/// hundreds of objects each this gives some dozens of reads per second at most.
const MAX_AGE: Duration = Duration::from_mins(30);

/// How many bytes are kept in all. An object that is not kept is read when it is needed.
const MAX_BYTES: usize = 64 << 20;
/// How many bytes are kept for the Stacks of one namespace.
const MAX_NAMESPACE_BYTES: usize = 8 << 20;

struct CachedObject {
    live: Value,
    /// About what it takes in memory.
    bytes: usize,
    /// When it was last used, by the cache's own count.
    used: u64,
    read_at: Instant,
    /// It is the answer to a write that no pass has used yet.
    is_unused_answer: bool,
    /// Its managed fields do not have to be migrated to server-side apply (any more).
    fields_migrated: bool,
}

/// What is kept for a Stack.
#[derive(Default)]
struct Known {
    namespace: String,
    objects: BTreeMap<Reference, CachedObject>,
}

/// What is kept for a namespace.
#[derive(Default)]
struct Room {
    bytes: usize,
    /// Its objects, the one first that was not used for longest.
    order: BTreeMap<u64, (String, Reference)>,
}

#[derive(Default)]
struct Objects {
    /// By the Stack's uid.
    stacks: HashMap<String, Known>,
    rooms: HashMap<String, Room>,
    bytes: usize,
    /// How often anything was used.
    count: u64,
}

/// Objects that were made with the rights of service accounts, by the Stack's uid.
#[derive(Default)]
pub struct ReadCache {
    objects: Mutex<Objects>,
    /// The digest of the new sources for which all objects were last read, by the Stack's uid.
    sources: Mutex<HashMap<String, String>>,
}

impl Objects {
    fn get(&self, uid: &str, object: &Reference) -> Option<&CachedObject> {
        self.stacks.get(uid)?.objects.get(object)
    }

    /// The object, which is used now.
    fn touch(&mut self, uid: &str, object: &Reference) -> Option<&mut CachedObject> {
        let known = self.stacks.get_mut(uid)?;
        let cached = known.objects.get_mut(object)?;
        self.count += 1;
        if let Some(room) = self.rooms.get_mut(&known.namespace)
            && let Some(place) = room.order.remove(&cached.used)
        {
            room.order.insert(self.count, place);
        }
        cached.used = self.count;
        Some(cached)
    }

    fn insert(&mut self, uid: &str, namespace: &str, object: &Reference, cached: CachedObject) {
        self.remove(uid, object);
        self.count += 1;
        let (used, bytes) = (self.count, cached.bytes);
        let known = self.stacks.entry(uid.to_owned()).or_default();
        namespace.clone_into(&mut known.namespace);
        known
            .objects
            .insert(object.clone(), CachedObject { used, ..cached });
        let room = self.rooms.entry(namespace.to_owned()).or_default();
        room.bytes += bytes;
        room.order.insert(used, (uid.to_owned(), object.clone()));
        self.bytes += bytes;
        self.make_room(namespace);
    }

    /// Forgets what was not used for longest, in the namespace and then where most is kept.
    fn make_room(&mut self, namespace: &str) {
        let over = |this: &Self| {
            let own = this.rooms.get(namespace);
            if own.is_some_and(|room| room.bytes > MAX_NAMESPACE_BYTES) {
                return Some(namespace.to_owned());
            }
            let most = this.rooms.iter().max_by_key(|(_, room)| room.bytes);
            most.filter(|_| this.bytes > MAX_BYTES)
                .map(|(name, _)| name.clone())
        };
        while let Some(namespace) = over(self) {
            let oldest = self.rooms.get(&namespace);
            let oldest = oldest.and_then(|room| room.order.values().next().cloned());
            let Some((uid, object)) = oldest else { return };
            self.remove(&uid, &object);
        }
    }

    fn remove(&mut self, uid: &str, object: &Reference) {
        let Some(known) = self.stacks.get_mut(uid) else {
            return;
        };
        let Some(old) = known.objects.remove(object) else {
            return;
        };
        self.bytes -= old.bytes;
        if let Some(room) = self.rooms.get_mut(&known.namespace) {
            room.bytes -= old.bytes;
            room.order.remove(&old.used);
            if room.order.is_empty() {
                self.rooms.remove(&known.namespace);
            }
        }
        if known.objects.is_empty() {
            self.stacks.remove(uid);
        }
    }

    fn remove_all(&mut self, uid: &str) {
        let known = self.stacks.get(uid);
        let objects: Vec<_> = known
            .into_iter()
            .flat_map(|known| known.objects.keys().cloned())
            .collect();
        for object in &objects {
            self.remove(uid, object);
        }
    }
}

impl ReadCache {
    fn objects(&self) -> MutexGuard<'_, Objects> {
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
    pub fn insert(
        &self,
        uid: &str,
        namespace: &str,
        object: &Reference,
        live: &Value,
        is_write: bool,
    ) {
        let mut live = live.clone();
        let fields = &live["metadata"]["managedFields"];
        let fields_migrated = fields.is_array() && migrated_fields(fields).is_none();
        if let Some(metadata) = live["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
        let cached = CachedObject {
            bytes: weight(&live),
            live,
            used: 0,
            read_at: Instant::now(),
            is_unused_answer: is_write,
            fields_migrated,
        };
        self.objects().insert(uid, namespace, object, cached);
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
        let mut objects = self.objects();
        let cached = objects.touch(uid, object)?;
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
        let objects = self.objects();
        let cached = objects.get(uid, object);
        cached.is_some_and(|cached| cached.fields_migrated)
    }

    /// Forgets one object: it is being changed or deleted.
    pub fn forget(&self, uid: &str, object: &Reference) {
        self.objects().remove(uid, object);
    }

    /// Forgets everything about a Stack.
    pub fn forget_all(&self, uid: &str) {
        self.objects().remove_all(uid);
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
        cache.insert("uid", "demo", &object, &live, true);
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
    fn what_was_not_used_for_longest_makes_room() {
        let cache = ReadCache::default();
        let live = |name: &str| json!({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "x".repeat(1 << 20)}});
        let reference = |name: &str| Reference::of(&live(name));
        let put = |uid: &str, namespace: &str, name: &str| {
            cache.insert(uid, namespace, &reference(name), &live(name), false);
        };
        let entry = Entry::default();
        let hour = Duration::from_hours(1);
        let has = |uid: &str, name: &str| cache.get(uid, &entry, &reference(name), hour).is_some();
        put("victim", "v", "kept");
        for at in 0..20 {
            put("hog", "h", &at.to_string());
            assert!(has("hog", "0"), "it is used again and again");
        }
        let kept = (0..20).filter(|at| has("hog", &at.to_string())).count();
        assert_eq!(kept, 7, "no more than a namespace may keep");
        assert!(has("hog", "19") && has("victim", "kept"));
        // In all: where most is kept makes room.
        for namespace in 0..20 {
            for at in 0..7 {
                let name = namespace.to_string();
                put(&name, &name, &at.to_string());
            }
        }
        assert!(cache.objects().bytes <= MAX_BYTES);
        assert!(has("victim", "kept") && has("19", "6"));
        for uid in (0..20).map(|uid| uid.to_string()) {
            cache.forget_all(&uid);
        }
        cache.forget_all("hog");
        cache.forget("victim", &reference("kept"));
        let objects = cache.objects();
        assert_eq!(
            (objects.bytes, objects.stacks.len(), objects.rooms.len()),
            (0, 0, 0)
        );
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
