//! Watches of all kinds; passes their events to the [`State`].

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::Pin;

use futures::stream::{Stream, StreamExt, select_all};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::state::{Key, State};
use pileus_api::{
    Flavor, Host, HostAggregate, Image, Instance, SchedulerPolicy, Server, ServerGroup,
};
use pileus_kube_ext::decode::Decoded;
use pileus_kube_ext::{Context, watch};

type Guarded<K> = Event<Decoded<K>>;

/// An event of one of the watches.
#[allow(
    clippy::large_enum_variant,
    reason = "each is moved once, into the state; a box would be one more allocation"
)]
pub(crate) enum Observed {
    Server(Guarded<Server>),
    Host(Guarded<Host>),
    Flavor(Guarded<Flavor>),
    Image(Guarded<Image>),
    Instance(Guarded<Instance>),
    Aggregate(Guarded<HostAggregate>),
    Group(Guarded<ServerGroup>),
    Policy(Guarded<SchedulerPolicy>),
    Priority(Guarded<PriorityClass>),
}

/// All watches in one stream, which does not end. Errors are logged and retried.
pub(crate) fn all(context: &Context) -> impl Stream<Item = Observed> + Unpin + Send + use<> {
    select_all([
        one(context, Observed::Server),
        one(context, Observed::Host),
        one(context, Observed::Flavor),
        one(context, Observed::Image),
        one(context, Observed::Instance),
        one(context, Observed::Aggregate),
        one(context, Observed::Group),
        one(context, Observed::Policy),
        one(context, Observed::Priority),
    ])
}

fn one<K>(
    context: &Context,
    wrap: fn(Guarded<K>) -> Observed,
) -> Pin<Box<dyn Stream<Item = Observed> + Send>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<Decoded<K>> = Api::all(context.client.clone());
    Box::pin(watch::objects(context, api, Config::default()).map(wrap))
}

/// A list that is being received.
struct Listing<K> {
    items: Vec<K>,
    /// Objects that exist but cannot be read.
    broken: BTreeSet<Key>,
    listed: bool,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            broken: BTreeSet::new(),
            listed: false,
        }
    }
}

/// The change of a watch event.
enum Change<K> {
    Apply(K),
    Delete(Key),
    /// It exists and cannot be read; its last version stays in use.
    Unreadable(Key),
    List(Vec<K>, BTreeSet<Key>),
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl<K: Resource<DynamicType = ()>> Listing<K> {
    fn apply(&mut self, event: Guarded<K>) -> Option<Change<K>> {
        match event {
            Event::Init => {
                self.items.clear();
                self.broken.clear();
                None
            }
            Event::InitApply(guard) => {
                match guard.0 {
                    Ok(object) => self.items.push(object),
                    Err(unreadable) => {
                        self.broken.insert(key_of(&unreadable.metadata));
                    }
                }
                None
            }
            Event::InitDone => {
                self.listed = true;
                let items = std::mem::take(&mut self.items);
                Some(Change::List(items, std::mem::take(&mut self.broken)))
            }
            Event::Apply(guard) => match guard.0 {
                Ok(object) => Some(Change::Apply(object)),
                Err(unreadable) => Some(Change::Unreadable(key_of(&unreadable.metadata))),
            },
            Event::Delete(guard) => Some(Change::Delete(key(&guard))),
        }
    }
}

fn key_of(metadata: &ObjectMeta) -> Key {
    let name = metadata.name.clone().unwrap_or_default();
    (metadata.namespace.clone().unwrap_or_default(), name)
}

/// A list with the last versions of what cannot be read now: it is there all the same.
fn with_last<K: Clone>(
    mut items: Vec<K>,
    broken: &BTreeSet<Key>,
    last: impl Fn(&Key) -> Option<K>,
) -> Vec<K> {
    items.extend(broken.iter().filter_map(last));
    items
}

/// Passes watch events to the state.
#[derive(Default)]
pub(crate) struct Dispatcher {
    servers: Listing<Server>,
    hosts: Listing<Host>,
    flavors: Listing<Flavor>,
    images: Listing<Image>,
    instances: Listing<Instance>,
    aggregates: Listing<HostAggregate>,
    groups: Listing<ServerGroup>,
    policies: Listing<SchedulerPolicy>,
    priorities: Listing<PriorityClass>,
}

impl Dispatcher {
    /// Whether every kind has been listed.
    pub(crate) fn all_listed(&self) -> bool {
        self.servers.listed
            && self.hosts.listed
            && self.flavors.listed
            && self.images.listed
            && self.instances.listed
            && self.aggregates.listed
            && self.groups.listed
            && self.policies.listed
            && self.priorities.listed
    }

    /// Applies one event.
    pub(crate) fn apply(&mut self, event: Observed, state: &mut State) {
        match event {
            Observed::Server(event) => match self.servers.apply(event) {
                Some(Change::Apply(server)) => state.server_applied(server),
                Some(Change::Delete(key)) => state.server_deleted(&key),
                Some(Change::List(items, broken)) => state.servers_listed(items, &broken),
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Host(event) => match self.hosts.apply(event) {
                Some(Change::Apply(host)) => state.host_applied(&host),
                Some(Change::Delete((_, name))) => state.host_deleted(&name),
                Some(Change::List(items, broken)) => state.hosts_listed(&items, &broken),
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Flavor(event) => match self.flavors.apply(event) {
                Some(Change::Apply(flavor)) => state.flavor_applied(flavor),
                Some(Change::Delete((_, name))) => state.flavor_deleted(&name),
                Some(Change::List(items, broken)) => {
                    let known = &state.catalogue.flavors;
                    let items = with_last(items, &broken, |(_, name)| known.get(name).cloned());
                    state.flavors_listed(items);
                }
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Image(event) => match self.images.apply(event) {
                Some(Change::Apply(image)) => state.image_applied(image),
                Some(Change::Delete(key)) => state.image_deleted(&key),
                Some(Change::List(items, broken)) => {
                    let known = &state.catalogue.images;
                    let items = with_last(items, &broken, |key| known.get(key).cloned());
                    state.images_listed(items);
                }
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Instance(event) => match self.instances.apply(event) {
                Some(Change::Apply(instance)) => state.instance_applied(&instance),
                Some(Change::Delete(key)) => state.instance_deleted(&key),
                Some(Change::List(items, broken)) => state.instances_listed(&items, &broken),
                Some(Change::Unreadable(key)) => state.instance_unreadable(&key),
                None => {}
            },
            Observed::Aggregate(event) => match self.aggregates.apply(event) {
                Some(Change::Apply(aggregate)) => state.aggregate_applied(aggregate),
                Some(Change::Delete((_, name))) => state.aggregate_deleted(&name),
                Some(Change::List(items, broken)) => state.aggregates_listed(items, &broken),
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Group(event) => match self.groups.apply(event) {
                Some(Change::Apply(group)) => state.group_applied(group),
                Some(Change::Delete(key)) => state.group_deleted(&key),
                Some(Change::List(items, broken)) => {
                    let known = &state.catalogue.groups;
                    let items = with_last(items, &broken, |key| known.get(key).cloned());
                    state.groups_listed(items);
                }
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Policy(event) => match self.policies.apply(event) {
                Some(Change::Apply(policy)) => state.policy_applied(policy),
                Some(Change::Delete((_, name))) => state.policy_deleted(&name),
                Some(Change::List(items, broken)) => state.policies_listed(items, &broken),
                Some(Change::Unreadable(_)) | None => {}
            },
            Observed::Priority(event) => match self.priorities.apply(event) {
                Some(Change::Apply(class)) => state.priority_class_applied(&class),
                Some(Change::Delete((_, name))) => state.priority_class_deleted(&name),
                Some(Change::List(items, _)) => state.priority_classes_listed(&items),
                Some(Change::Unreadable(_)) | None => {}
            },
        }
    }
}
