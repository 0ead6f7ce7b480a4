//! A store with our own latest writes laid over it, so that a pass never decides from what
//! it has changed itself a moment ago.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::{Resource, ResourceExt};

use pileus_kube_ext::cache::Cache;

/// How long an object that we made or deleted is believed in although the watch has not
/// said so yet. A watch is behind by milliseconds; after this long something else happened.
const PATIENCE: Duration = Duration::from_mins(1);

struct Newer<K> {
    object: Arc<K>,
    /// When we made it; none if it was there and we changed it.
    made: Option<Instant>,
}

/// Our writes to one kind.
pub struct Overlay<K> {
    newer: HashMap<String, Newer<K>>,
    gone: HashMap<String, Instant>,
}

impl<K> Default for Overlay<K> {
    fn default() -> Self {
        Self {
            newer: HashMap::new(),
            gone: HashMap::new(),
        }
    }
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Overlay<K> {
    /// Notes an object as the API server returned it from a change.
    pub fn changed(&mut self, object: K) {
        self.note(object, None);
    }

    /// Notes an object as the API server returned it from its creation.
    pub fn made(&mut self, object: K) {
        self.note(object, Some(Instant::now()));
    }

    fn note(&mut self, object: K, made: Option<Instant>) {
        let uid = object.uid().unwrap_or_default();
        let made = made.or_else(|| self.newer.get(&uid).and_then(|n| n.made));
        let object = Arc::new(object);
        self.newer.insert(uid, Newer { object, made });
    }

    /// Notes that an object is gone.
    pub fn gone(&mut self, uid: &str) {
        self.newer.remove(uid);
        self.gone.insert(uid.to_owned(), Instant::now());
    }

    /// The objects as far as we know.
    pub fn view(&mut self, store: &Cache<K>) -> Vec<Arc<K>> {
        let mut seen = HashSet::new();
        let mut objects = Vec::with_capacity(store.len());
        for object in store.state() {
            let uid = object.uid().unwrap_or_default();
            seen.insert(uid.clone());
            if self.gone.contains_key(&uid) {
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
            // What we changed and the store has no more was deleted.
            seen.contains(uid) || newer.made.is_some_and(|at| at.elapsed() < PATIENCE)
        });
        for (uid, newer) in &self.newer {
            if !seen.contains(uid) {
                objects.push(newer.object.clone());
            }
        }
        self.gone
            .retain(|uid, at| seen.contains(uid) || at.elapsed() < PATIENCE);
        objects
    }
}
