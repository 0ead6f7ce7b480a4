//! A cache with our own latest writes, so that a pass never decides from a state that it has
//! changed itself a moment ago.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::{Resource, ResourceExt};

use pileus_kube_ext::cache::Cache;

/// How long our own creation or deletion of an object counts although the watch has not reported
/// it yet. A watch is behind by milliseconds; after this long something else happened.
const WATCH_TIMEOUT: Duration = Duration::from_mins(1);

struct Newer<K> {
    object: Arc<K>,
    /// When we created it; none if it existed and we updated it.
    created: Option<Instant>,
}

/// Our own writes to objects of one kind that its cache may not have yet.
pub struct Overlay<K> {
    newer: HashMap<String, Newer<K>>,
    deleted: HashMap<String, Instant>,
}

impl<K> Default for Overlay<K> {
    fn default() -> Self {
        Self {
            newer: HashMap::new(),
            deleted: HashMap::new(),
        }
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Overlay<K> {
    /// Records an object as the API server returned it from an update.
    pub fn updated(&mut self, object: K) {
        self.record(object, None);
    }

    /// Records an object as the API server returned it from its creation.
    pub fn created(&mut self, object: K) {
        self.record(object, Some(Instant::now()));
    }

    fn record(&mut self, object: K, created: Option<Instant>) {
        let uid = object.uid().unwrap_or_default();
        let created = created.or_else(|| self.newer.get(&uid).and_then(|n| n.created));
        let object = Arc::new(object);
        self.newer.insert(uid, Newer { object, created });
    }

    /// Records that an object is deleted.
    pub fn deleted(&mut self, uid: &str) {
        self.newer.remove(uid);
        self.deleted.insert(uid.to_owned(), Instant::now());
    }

    /// The objects of the store with our writes.
    pub fn objects(&mut self, cache: &Cache<K>) -> Vec<Arc<K>> {
        let mut stored = HashSet::new();
        let mut objects = Vec::with_capacity(cache.len());
        for object in cache.state() {
            let uid = object.uid().unwrap_or_default();
            stored.insert(uid.clone());
            if self.deleted.contains_key(&uid) {
                continue;
            }
            match self.newer.get(&uid) {
                Some(newer) if version(&*object) < version(&*newer.object) => {
                    objects.push(newer.object.clone());
                }
                Some(_) => {
                    self.newer.remove(&uid);
                    objects.push(object);
                }
                None => objects.push(object),
            }
        }
        self.newer.retain(|uid, newer| {
            // What we updated and the store no longer has was deleted by others.
            stored.contains(uid) || newer.created.is_some_and(|at| at.elapsed() < WATCH_TIMEOUT)
        });
        for (uid, newer) in &self.newer {
            if !stored.contains(uid) {
                objects.push(newer.object.clone());
            }
        }
        self.deleted
            .retain(|uid, at| stored.contains(uid) || at.elapsed() < WATCH_TIMEOUT);
        objects
    }
}
