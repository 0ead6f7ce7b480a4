//! Caches: all objects of one kind as the API server had them last, with indexes.
//!
//! A cache is kube's reflector store, and beside it indexes that say which objects have a key
//! in common: the uid, an owner, the name of an object that they refer to. Whoever needs the
//! objects that refer to another asks an index, and nobody goes through all of them.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::chain;

/// How objects of a kind are looked up beside their name: by keys that are computed from them.
///
/// Declared as a constant next to what the keys mean, and given to the cache when that is made.
/// The name must be unique among the indexes of a kind.
pub struct Index<K> {
    name: &'static str,
    keys: fn(&K) -> Vec<String>,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Index<K> {}

impl<K> Index<K> {
    /// An index whose objects are found by `keys`.
    #[must_use]
    pub const fn new(name: &'static str, keys: fn(&K) -> Vec<String>) -> Self {
        Self { name, keys }
    }

    /// The keys of an object.
    #[must_use]
    pub fn keys(&self, object: &K) -> Vec<String> {
        (self.keys)(object)
    }
}

impl<K: Resource> Index<K> {
    /// By uid.
    #[must_use]
    pub const fn by_uid() -> Self {
        Self::new("uid", |object| object.uid().into_iter().collect())
    }
}

/// The key of an object in a namespace, for indexes of references.
#[must_use]
pub fn namespaced(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// [`namespaced`] of an object.
#[must_use]
pub fn key_of<K: Resource>(object: &K) -> String {
    namespaced(
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.meta().name.as_deref().unwrap_or_default(),
    )
}

/// A change of an object.
pub struct Change<K> {
    /// The object as the cache had it before; nothing when it had none of that name.
    pub before: Option<Arc<K>>,
    /// The object as it is now, or as it was last when it is gone.
    pub object: Arc<K>,
    /// The object is not there any more.
    pub is_gone: bool,
}

impl<K> Change<K> {
    /// The versions that a change is between: what either refers to is concerned.
    pub fn versions(&self) -> impl Iterator<Item = &K> {
        let before = self.before.as_deref();
        before.into_iter().chain([&*self.object])
    }
}

impl<K: Resource> Change<K> {
    /// Whether the object is being deleted or gone.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.is_gone || self.object.meta().deletion_timestamp.is_some()
    }
}

type Subscriber<K> = Box<dyn Fn(&Change<K>) + Send>;

/// All objects of a kind, as the API server had them last.
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    shared: Arc<Shared<K>>,
}

struct Shared<K: Resource<DynamicType = ()> + Clone + 'static> {
    store: Store<K>,
    /// Locked while the store changes, too: who reads both under the lock sees them agree.
    indexes: RwLock<Indexes<K>>,
    /// Locked for the whole of an event, so that a new subscriber misses no change and
    /// gets none twice. Always locked before `indexes`.
    subscribers: Mutex<Vec<Subscriber<K>>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// An empty cache, and the end that events are written to.
    #[must_use]
    pub fn new(indexes: &[Index<K>]) -> (Self, CacheWriter<K>) {
        let (store, writer) = reflector::store();
        let shared = Arc::new(Shared {
            store,
            indexes: RwLock::new(Indexes::new(indexes)),
            subscribers: Mutex::default(),
        });
        let cache = Self { shared };
        (cache.clone(), CacheWriter { writer, cache })
    }

    /// Waits until the cache holds what the API server has. Nothing may be concluded from what
    /// a cache does not hold before.
    pub async fn ready(&self) {
        if self.shared.store.wait_until_ready().await.is_err() {
            // Nobody writes to it: it never will.
            std::future::pending::<()>().await;
        }
    }

    /// The store that kube's controllers read.
    #[must_use]
    pub fn store(&self) -> &Store<K> {
        &self.shared.store
    }

    /// All objects, in no order.
    #[must_use]
    pub fn state(&self) -> Vec<Arc<K>> {
        self.shared.store.state()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.store.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shared.store.is_empty()
    }

    /// An object by its name; `namespace` is empty for kinds without namespaces.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = ObjectRef::new(name);
        self.shared.store.get(&if namespace.is_empty() {
            key
        } else {
            key.within(namespace)
        })
    }

    /// The objects that have `key` in an index, in no order.
    #[must_use]
    pub fn by(&self, index: &Index<K>, key: &str) -> Vec<Arc<K>> {
        let indexes = self.indexes();
        let Some(entries) = indexes.get(index) else {
            debug_assert!(
                false,
                "index `{}` of {} is not declared",
                index.name,
                K::kind(&())
            );
            return self
                .shared
                .store
                .state_filter(|object| index.keys(object).iter().any(|k| k == key));
        };
        let found = entries.get(key).into_iter().flatten();
        found.filter_map(|key| self.shared.store.get(key)).collect()
    }

    /// The names of the objects that have `key` in an index, in no order.
    #[must_use]
    pub fn names_by(&self, index: &Index<K>, key: &str) -> Vec<ObjectRef<K>> {
        let found = self.by(index, key);
        found.iter().map(|object| name_of(&**object)).collect()
    }

    /// Calls `subscriber` with every change from now on, and first with every object that is
    /// there already. It is called for one change after the other and must not take long.
    ///
    /// When everything has been listed again, that is a change of every object, and of those
    /// that went while nobody watched.
    pub fn subscribe(&self, subscriber: impl Fn(&Change<K>) + Send + 'static) {
        let mut subscribers = self.subscribers();
        for object in self.state() {
            subscriber(&Change {
                before: None,
                object,
                is_gone: false,
            });
        }
        subscribers.push(Box::new(subscriber));
    }

    fn indexes(&self) -> RwLockReadGuard<'_, Indexes<K>> {
        self.shared
            .indexes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber<K>>> {
        self.shared
            .subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// A cache that follows the API server for as long as the runtime runs.
    #[must_use]
    pub fn watch(api: Api<K>, config: watcher::Config, indexes: &[Index<K>]) -> Self {
        let (cache, mut writer) = Self::new(indexes);
        let events = watcher(api, config).default_backoff();
        tokio::spawn(events.for_each(move |event| {
            match event {
                Ok(event) => writer.write(&event),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(kind = %K::kind(&()), error, "the watch failed and will be tried again");
                }
            }
            std::future::ready(())
        }));
        cache
    }
}

/// The end of a cache that events are written to.
pub struct CacheWriter<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    writer: Writer<K>,
    cache: Cache<K>,
}

impl<K> CacheWriter<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// Brings the cache to the state after an event, and calls its subscribers.
    pub fn write(&mut self, event: &Event<K>) {
        let cache = self.cache.clone();
        let subscribers = cache.subscribers();
        for change in self.apply(event) {
            for subscriber in &*subscribers {
                subscriber(&change);
            }
        }
    }

    fn apply(&mut self, event: &Event<K>) -> Vec<Change<K>> {
        let shared = &self.cache.shared;
        let mut indexes = shared
            .indexes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let name = name_of(object);
                let before = shared.store.get(&name);
                self.writer.apply_watcher_event(event);
                let Some(object) = shared.store.get(&name) else {
                    return Vec::new();
                };
                if let Some(before) = &before {
                    indexes.remove(&name, before);
                }
                indexes.insert(&name, &object);
                vec![Change {
                    before,
                    object,
                    is_gone: false,
                }]
            }
            Event::Delete(object) => {
                let name = name_of(object);
                let before = shared.store.get(&name);
                self.writer.apply_watcher_event(event);
                if let Some(before) = &before {
                    indexes.remove(&name, before);
                }
                vec![Change {
                    before,
                    object: Arc::new(object.clone()),
                    is_gone: true,
                }]
            }
            // The store takes a new list in when it is complete.
            Event::Init | Event::InitApply(_) => {
                self.writer.apply_watcher_event(event);
                Vec::new()
            }
            Event::InitDone => {
                let before = shared.store.state();
                self.writer.apply_watcher_event(event);
                indexes.clear();
                let mut gone: HashMap<_, _> = before
                    .into_iter()
                    .map(|object| (name_of(&*object), object))
                    .collect();
                let mut changes = Vec::with_capacity(shared.store.len());
                for object in shared.store.state() {
                    let name = name_of(&*object);
                    indexes.insert(&name, &object);
                    changes.push(Change {
                        before: gone.remove(&name),
                        object,
                        is_gone: false,
                    });
                }
                changes.extend(gone.into_values().map(|object| Change {
                    before: None,
                    object,
                    is_gone: true,
                }));
                changes
            }
        }
    }
}

/// The name that an object is kept by: no more than namespace and name.
pub(crate) fn name_of<K: Resource<DynamicType = ()>>(object: &K) -> ObjectRef<K> {
    let key = ObjectRef::new(object.meta().name.as_deref().unwrap_or_default());
    match &object.meta().namespace {
        Some(namespace) => key.within(namespace),
        None => key,
    }
}

type Entries<K> = HashMap<String, HashSet<ObjectRef<K>>>;

struct Indexes<K: Resource<DynamicType = ()> + 'static>(Vec<(Index<K>, Entries<K>)>);

impl<K: Resource<DynamicType = ()> + 'static> Indexes<K> {
    fn new(indexes: &[Index<K>]) -> Self {
        let indexes = indexes.iter().map(|index| (*index, HashMap::new()));
        Self(indexes.collect())
    }

    fn get(&self, wanted: &Index<K>) -> Option<&Entries<K>> {
        let found = self.0.iter().find(|(index, _)| index.name == wanted.name);
        found.map(|(_, entries)| entries)
    }

    fn insert(&mut self, name: &ObjectRef<K>, object: &K) {
        for (index, entries) in &mut self.0 {
            for key in index.keys(object) {
                entries.entry(key).or_default().insert(name.clone());
            }
        }
    }

    fn remove(&mut self, name: &ObjectRef<K>, object: &K) {
        for (index, entries) in &mut self.0 {
            for key in index.keys(object) {
                if let Some(objects) = entries.get_mut(&key) {
                    objects.remove(name);
                    if objects.is_empty() {
                        entries.remove(&key);
                    }
                }
            }
        }
    }

    fn clear(&mut self) {
        for (_, entries) in &mut self.0 {
            entries.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use proptest::prelude::*;

    use super::*;

    const BY_DATA: Index<ConfigMap> = Index::new("data", |map| {
        map.data.iter().flatten().map(|(_, v)| v.clone()).collect()
    });

    fn map(namespace: &str, name: &str, uid: u8, data: &[u8]) -> ConfigMap {
        let data = data.iter().enumerate();
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                uid: Some(uid.to_string()),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(i, v)| (i.to_string(), v.to_string())).collect()),
            ..ConfigMap::default()
        }
    }

    fn object() -> impl Strategy<Value = ConfigMap> {
        let names = (prop_oneof!["a", "b"], prop_oneof!["x", "y", "z"]);
        let content = (0..3_u8, proptest::collection::vec(0..4_u8, 0..3));
        (names, content).prop_map(|((ns, name), (uid, data))| map(&ns, &name, uid, &data))
    }

    /// What a watch may give: changes, and lists that may be broken off.
    fn events() -> impl Strategy<Value = Vec<Event<ConfigMap>>> {
        let list = (proptest::collection::vec(object(), 0..6), any::<bool>());
        let list = list.prop_map(|(objects, whole)| {
            let objects = objects.into_iter().map(Event::InitApply);
            let done = whole.then_some(Event::InitDone);
            [Event::Init]
                .into_iter()
                .chain(objects)
                .chain(done)
                .collect()
        });
        let batch = prop_oneof![
            3 => object().prop_map(|object| vec![Event::Apply(object)]),
            2 => object().prop_map(|object| vec![Event::Delete(object)]),
            1 => list,
        ];
        proptest::collection::vec(batch, 0..24).prop_map(|batches| batches.concat())
    }

    fn names(objects: &[Arc<ConfigMap>]) -> Vec<String> {
        let mut names: Vec<_> = objects.iter().map(|object| key_of(&**object)).collect();
        names.sort();
        names
    }

    proptest! {
        #[test]
        fn an_index_says_what_a_scan_of_all_objects_says(events in events()) {
            let indexes = [BY_DATA, Index::by_uid()];
            let (cache, mut writer) = Cache::new(&indexes);
            for event in events {
                writer.write(&event);
                for index in &indexes {
                    for key in 0..4_u8 {
                        let key = key.to_string();
                        let all = cache.state().into_iter();
                        let scanned: Vec<_> =
                            all.filter(|object| index.keys(object).contains(&key)).collect();
                        let found = cache.by(index, &key);
                        prop_assert_eq!(names(&found), names(&scanned));
                        for object in found {
                            prop_assert!(scanned.contains(&object));
                        }
                        prop_assert_eq!(cache.names_by(index, &key).len(), scanned.len());
                    }
                }
                // Nothing is left of what has no key any more.
                for (_, entries) in &cache.indexes().0 {
                    prop_assert!(entries.values().all(|objects| !objects.is_empty()));
                }
            }
        }

        #[test]
        fn changes_add_up_to_what_the_cache_holds(events in events(), late in 0..12_usize) {
            let (cache, mut writer) = Cache::<ConfigMap>::new(&[]);
            let mirror = Arc::new(Mutex::new(BTreeMap::new()));
            for (at, event) in events.into_iter().enumerate() {
                if at == late {
                    let mirror = mirror.clone();
                    cache.subscribe(move |change| {
                        let key = key_of(&*change.object);
                        let mut mirror = mirror.lock().unwrap();
                        let known = mirror.remove(&key);
                        if !change.is_gone {
                            assert_eq!(known, change.before);
                            mirror.insert(key, change.object.clone());
                        }
                    });
                }
                writer.write(&event);
                if at >= late {
                    let mirror: Vec<_> = mirror.lock().unwrap().values().cloned().collect();
                    prop_assert_eq!(names(&mirror), names(&cache.state()));
                    prop_assert!(cache.state().iter().all(|object| mirror.contains(object)));
                }
            }
        }
    }

    #[tokio::test]
    async fn what_went_while_nobody_watched_is_a_change_and_a_list_that_breaks_off_is_none() {
        let (cache, mut writer) = Cache::new(&[BY_DATA]);
        assert!(futures::FutureExt::now_or_never(cache.ready()).is_none());
        writer.write(&Event::Init);
        writer.write(&Event::InitApply(map("a", "x", 1, &[1])));
        assert!(cache.is_empty());
        writer.write(&Event::InitDone);
        cache.ready().await;
        let noted = Arc::new(Mutex::new(Vec::new()));
        let changes = noted.clone();
        cache.subscribe(move |change| {
            let name = change.object.name_any();
            changes
                .lock()
                .unwrap()
                .push((name, change.before.is_some(), change.is_gone));
        });
        let now = || std::mem::take(&mut *noted.lock().unwrap());
        assert_eq!(now(), [("x".to_owned(), false, false)]);
        writer.write(&Event::Init);
        writer.write(&Event::InitApply(map("a", "y", 2, &[2])));
        assert_eq!((now(), cache.by(&BY_DATA, "1").len()), (vec![], 1));
        // The watch begins its list again.
        writer.write(&Event::Init);
        writer.write(&Event::InitApply(map("a", "z", 3, &[3])));
        writer.write(&Event::InitDone);
        let gone = ("x".to_owned(), false, true);
        assert_eq!(now(), [("z".to_owned(), false, false), gone]);
        assert!(cache.by(&BY_DATA, "1").is_empty() && cache.by(&BY_DATA, "2").is_empty());
    }
}
