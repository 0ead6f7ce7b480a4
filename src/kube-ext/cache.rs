//! Caches: all objects of one kind as the API server had them last, with indexes.
//!
//! A cache is kube's reflector store, and beside it indexes that say which objects have a key
//! in common: the uid, an owner, the name of an object that they refer to. Whoever needs the
//! objects that refer to another asks an index, and nobody goes through all of them.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use futures::StreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::Context;
use super::decode::Decoded;

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
    /// The objects that exist and cannot be decoded.
    unreadable: RwLock<HashSet<ObjectRef<K>>>,
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
            unreadable: RwLock::default(),
            subscribers: Mutex::default(),
        });
        let cache = Self { shared };
        let listed = HashSet::new();
        let end = CacheWriter {
            writer,
            cache: cache.clone(),
            listed,
        };
        (cache, end)
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

    /// Whether there is an object of that name that cannot be decoded. The cache has the last
    /// version of it that could be, or nothing, and that says nothing then: it is not absent.
    #[must_use]
    pub fn is_unreadable(&self, namespace: &str, name: &str) -> bool {
        let name = ObjectRef::new(name);
        self.unreadable().contains(&if namespace.is_empty() {
            name
        } else {
            name.within(namespace)
        })
    }

    fn unreadable(&self) -> RwLockReadGuard<'_, HashSet<ObjectRef<K>>> {
        let unreadable = self.shared.unreadable.read();
        unreadable.unwrap_or_else(PoisonError::into_inner)
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
    /// A cache that follows the API server for as long as the runtime runs. Should its task end,
    /// so does the role.
    #[must_use]
    pub fn watch(
        context: &Context,
        api: Api<Decoded<K>>,
        config: watcher::Config,
        indexes: &[Index<K>],
    ) -> Self {
        let (cache, mut writer) = Self::new(indexes);
        let events = super::watch::objects(context, api, config);
        tokio::spawn(events.for_each(move |event| {
            writer.observe(event);
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
    /// What cannot be decoded of a list that is being received.
    listed: HashSet<ObjectRef<K>>,
}

impl<K> CacheWriter<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    /// As [`CacheWriter::write`], of objects that may be impossible to decode: the last version
    /// that could be decoded is kept of those, unless it is of another object of the same name.
    pub fn observe(&mut self, event: Event<Decoded<K>>) {
        match event {
            Event::Init => {
                self.listed.clear();
                self.write(&Event::Init);
            }
            Event::InitApply(Decoded(Ok(object))) => self.write(&Event::InitApply(object)),
            Event::InitApply(object) => {
                self.listed.insert(name_of_any(&object));
                if let Some(last) = self.last_version(&object) {
                    self.write(&Event::InitApply(K::clone(&last)));
                }
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                self.set_unreadable(|all| std::mem::replace(all, listed));
                self.write(&Event::InitDone);
            }
            Event::Apply(Decoded(Ok(object))) => {
                self.set_unreadable(|all| all.remove(&name_of(&object)));
                self.write(&Event::Apply(object));
            }
            Event::Apply(object) => {
                let name = name_of_any(&object);
                let known = self.cache.shared.store.get(&name);
                self.set_unreadable(|all| all.insert(name));
                if self.last_version(&object).is_none()
                    && let Some(other) = known
                {
                    self.write(&Event::Delete(K::clone(&other)));
                }
            }
            Event::Delete(object) => {
                let name = name_of_any(&object);
                self.set_unreadable(|all| all.remove(&name));
                let known = self.cache.shared.store.get(&name);
                if let Some(object) = object.ok().or(known.map(|last| K::clone(&last))) {
                    self.write(&Event::Delete(object));
                }
            }
        }
    }

    /// Changes the set of those that cannot be decoded; what that gives does not matter.
    fn set_unreadable<T>(&self, change: impl FnOnce(&mut HashSet<ObjectRef<K>>) -> T) {
        let unreadable = self.cache.shared.unreadable.write();
        change(&mut unreadable.unwrap_or_else(PoisonError::into_inner));
    }

    /// The last version of an object that could be decoded.
    fn last_version(&self, object: &Decoded<K>) -> Option<Arc<K>> {
        let known = self.cache.shared.store.get(&name_of_any(object))?;
        (known.meta().uid == object.meta().uid).then_some(known)
    }

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
    name_in(object)
}

fn name_of_any<K: Resource<DynamicType = ()>>(object: &Decoded<K>) -> ObjectRef<K> {
    name_in(object)
}

fn name_in<O: Resource, K: Resource<DynamicType = ()>>(object: &O) -> ObjectRef<K> {
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
#[path = "cache_tests.rs"]
mod tests;
