//! What wakes a controller: its declaration of the kinds whose changes concern its objects, and
//! of which objects they concern.
//!
//! All controllers share one cache of each kind, and with it one watch.

use std::collections::HashSet;

use kube::Resource;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::cache::{Cache, Change, Index, name_of};

/// The objects that a controller reconciles, and what wakes it.
pub struct Triggers<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    cache: Cache<K>,
    queue: Queue<K>,
    requests: UnboundedReceiver<ObjectRef<K>>,
}

/// Takes the names of objects that a controller has to look at.
pub struct Queue<K: Resource<DynamicType = ()> + 'static>(UnboundedSender<ObjectRef<K>>);

impl<K: Resource<DynamicType = ()> + 'static> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Resource<DynamicType = ()> + 'static> Queue<K> {
    /// Has an object looked at.
    pub fn wake(&self, object: ObjectRef<K>) {
        // A controller that has ended needs no waking; nothing else can go wrong.
        let _ = self.0.send(object);
    }

    /// Waits until the controller has ended.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl<K> Triggers<K>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    /// Those of the controller of the objects in `cache`: each is looked at when it changes
    /// itself.
    #[must_use]
    pub fn controller(cache: &Cache<K>) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let triggers = Self {
            cache: cache.clone(),
            queue: Queue(queue),
            requests,
        };
        triggers.woken_by(cache, |object| Some(name_of(object)))
    }

    /// Wakes the objects that `concerned` names for an object of `other` that has changed. It is
    /// called with the object as it was before and as it is now: when a reference changes, who
    /// is left is woken as well as who is joined.
    #[must_use]
    pub fn woken_by<O, I>(
        self,
        other: &Cache<O>,
        concerned: impl Fn(&O) -> I + Send + 'static,
    ) -> Self
    where
        O: Resource<DynamicType = ()> + Clone + 'static,
        I: IntoIterator<Item = ObjectRef<K>>,
    {
        self.woken_by_change(other, move |change| {
            let mut found = Vec::new();
            for version in change.versions() {
                found.extend(concerned(version));
            }
            found
        })
    }

    /// Wakes the objects that `concerned` names for a change in `other`: for what depends on
    /// how an object changes.
    #[must_use]
    pub fn woken_by_change<O, I>(
        self,
        other: &Cache<O>,
        concerned: impl Fn(&Change<O>) -> I + Send + 'static,
    ) -> Self
    where
        O: Resource<DynamicType = ()> + Clone + 'static,
        I: IntoIterator<Item = ObjectRef<K>>,
    {
        let queue = self.queue.clone();
        other.subscribe(move |change| {
            let concerned: HashSet<_> = concerned(change).into_iter().collect();
            for object in concerned {
                queue.wake(object);
            }
        });
        self
    }

    /// Wakes the owners of the objects in `owned`.
    #[must_use]
    pub fn woken_by_owned<O>(self, owned: &Cache<O>) -> Self
    where
        O: Resource<DynamicType = ()> + Clone + 'static,
    {
        self.woken_by(owned, owners)
    }

    /// Wakes the objects that refer to one in `referenced`: those that have its `key` in
    /// `index`.
    #[must_use]
    pub fn woken_by_reference<O>(
        self,
        referenced: &Cache<O>,
        index: Index<K>,
        key: impl Fn(&O) -> String + Send + 'static,
    ) -> Self
    where
        O: Resource<DynamicType = ()> + Clone + 'static,
    {
        let own = self.cache.clone();
        self.woken_by_change(referenced, move |change| {
            let keys: HashSet<_> = change.versions().map(&key).collect();
            let mut found = Vec::new();
            for key in keys {
                found.extend(own.names_by(&index, &key));
            }
            found
        })
    }

    /// Wakes the objects that those in `users` refer to, when a reference ends: a user is being
    /// deleted, is gone, or refers to something else. For objects that wait to be deleted until
    /// nothing uses them.
    #[must_use]
    pub fn woken_by_release<U, I>(
        self,
        users: &Cache<U>,
        used: impl Fn(&U) -> I + Send + 'static,
    ) -> Self
    where
        U: Resource<DynamicType = ()> + Clone + 'static,
        I: IntoIterator<Item = ObjectRef<K>>,
    {
        self.woken_by_change(users, move |change| {
            let all = |user: &U| used(user).into_iter().collect::<HashSet<_>>();
            let now = all(&change.object);
            let before = change.before.as_deref().map(all).unwrap_or_default();
            if change.is_leaving() {
                return before.union(&now).cloned().collect::<Vec<_>>();
            }
            before.difference(&now).cloned().collect()
        })
    }

    /// Where names of objects to look at are put by what is no watch.
    #[must_use]
    pub fn queue(&self) -> &Queue<K> {
        &self.queue
    }

    /// The objects, and the names of those to look at.
    #[must_use]
    pub fn into_parts(self) -> (Cache<K>, UnboundedReceiver<ObjectRef<K>>) {
        (self.cache, self.requests)
    }
}

/// The owners of an object that are of kind `K`.
#[must_use]
pub fn owners<K, O>(object: &O) -> Vec<ObjectRef<K>>
where
    K: Resource<DynamicType = ()>,
    O: Resource,
{
    let is_group = |version: &str| {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        group == K::group(&())
    };
    let namespace = object.meta().namespace.as_deref();
    let owners = object.meta().owner_references.iter().flatten();
    owners
        .filter(|owner| owner.kind == K::kind(&()) && is_group(&owner.api_version))
        .map(|owner| {
            let name = ObjectRef::new(&owner.name);
            // An owner is in the same namespace, or in none.
            match namespace {
                Some(namespace) => name.within(namespace),
                None => name,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kube::api::ObjectMeta;
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::cache::{CacheWriter, key_of, namespaced};

    /// Secrets that a ConfigMap names; here in its data.
    fn named(map: &ConfigMap) -> Vec<ObjectRef<Secret>> {
        let names = map.data.iter().flatten().map(|(name, _)| name);
        names.map(|name| ObjectRef::new(name).within("n")).collect()
    }

    const BY_MAP: Index<Secret> = Index::new("map", |secret| {
        let names = secret.string_data.iter().flatten().map(|(name, _)| name);
        names.map(|name| namespaced("n", name)).collect()
    });

    fn meta(name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("n".to_owned()),
            ..ObjectMeta::default()
        }
    }

    fn map(name: &str, data: &[&str]) -> ConfigMap {
        let data = data.iter().map(|key| ((*key).to_owned(), String::new()));
        ConfigMap {
            metadata: meta(name),
            data: Some(data.collect()),
            ..ConfigMap::default()
        }
    }

    fn secret(name: &str, data: &[&str]) -> Secret {
        let data = data.iter().map(|key| ((*key).to_owned(), String::new()));
        Secret {
            metadata: meta(name),
            string_data: Some(data.collect()),
            ..Secret::default()
        }
    }

    struct World {
        secrets: Cache<Secret>,
        secret_events: CacheWriter<Secret>,
        maps: Cache<ConfigMap>,
        map_events: CacheWriter<ConfigMap>,
    }

    impl World {
        fn new() -> Self {
            let (secrets, secret_events) = Cache::new(&[BY_MAP]);
            let (maps, map_events) = Cache::new(&[]);
            Self {
                secrets,
                secret_events,
                maps,
                map_events,
            }
        }
    }

    fn woken(triggers: &mut Triggers<Secret>) -> Vec<String> {
        let mut names = Vec::new();
        while let Ok(object) = triggers.requests.try_recv() {
            names.push(object.name);
        }
        names.sort();
        names
    }

    #[test]
    fn a_reference_that_changes_wakes_who_is_left_and_who_is_joined() {
        let mut world = World::new();
        let mut triggers = Triggers::controller(&world.secrets).woken_by(&world.maps, named);
        world.map_events.write(&Event::Apply(map("m", &["a"])));
        assert_eq!(woken(&mut triggers), ["a"]);
        world.map_events.write(&Event::Apply(map("m", &["b"])));
        assert_eq!(woken(&mut triggers), ["a", "b"]);
        world.map_events.write(&Event::Apply(map("m", &["b"])));
        assert_eq!(woken(&mut triggers), ["b"]);
        // What went while nobody watched wakes by what it was last.
        world.map_events.write(&Event::Init);
        assert!(woken(&mut triggers).is_empty());
        world.map_events.write(&Event::InitDone);
        assert_eq!(woken(&mut triggers), ["b"]);
    }

    #[test]
    fn who_refers_to_an_object_is_woken_by_it_and_by_its_own_changes() {
        let mut world = World::new();
        world
            .secret_events
            .write(&Event::Apply(secret("early", &["m"])));
        let mut triggers =
            Triggers::controller(&world.secrets).woken_by_reference(&world.maps, BY_MAP, key_of);
        // Also what was there before the controller.
        assert_eq!(woken(&mut triggers), ["early"]);
        world
            .secret_events
            .write(&Event::Apply(secret("late", &["m", "other"])));
        assert_eq!(woken(&mut triggers), ["late"]);
        world.map_events.write(&Event::Apply(map("m", &[])));
        assert_eq!(woken(&mut triggers), ["early", "late"]);
        world
            .secret_events
            .write(&Event::Delete(secret("early", &["m"])));
        assert_eq!(woken(&mut triggers), ["early"]);
        world.map_events.write(&Event::Delete(map("m", &[])));
        assert_eq!(woken(&mut triggers), ["late"]);
        world.map_events.write(&Event::Apply(map("unused", &[])));
        assert!(woken(&mut triggers).is_empty());
    }

    #[test]
    fn what_is_used_is_woken_only_when_a_use_ends() {
        let mut world = World::new();
        let mut triggers =
            Triggers::controller(&world.secrets).woken_by_release(&world.maps, named);
        world.map_events.write(&Event::Apply(map("m", &["a", "b"])));
        world
            .map_events
            .write(&Event::Apply(map("m", &["a", "b", "c"])));
        assert!(woken(&mut triggers).is_empty());
        world.map_events.write(&Event::Apply(map("m", &["b", "c"])));
        assert_eq!(woken(&mut triggers), ["a"]);
        let mut deleting = map("m", &["b", "c"]);
        deleting.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ));
        world.map_events.write(&Event::Apply(deleting));
        assert_eq!(woken(&mut triggers), ["b", "c"]);
        world.map_events.write(&Event::Delete(map("m", &["b"])));
        assert_eq!(woken(&mut triggers), ["b", "c"]);
    }

    #[test]
    fn owners_of_the_kind_are_woken_and_no_others() {
        let mut world = World::new();
        let mut triggers = Triggers::controller(&world.secrets).woken_by_owned(&world.maps);
        let owner = |version: &str, kind: &str, name: &str| OwnerReference {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            ..OwnerReference::default()
        };
        let mut child = map("m", &[]);
        child.metadata.owner_references = Some(vec![
            owner("v1", "Secret", "yes"),
            owner("v1", "ConfigMap", "kind"),
            owner("example.org/v1", "Secret", "group"),
        ]);
        world.map_events.write(&Event::Apply(child));
        assert_eq!(woken(&mut triggers), ["yes"]);
    }
}
