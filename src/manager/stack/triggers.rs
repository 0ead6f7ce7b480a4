//! What wakes the controller of Stacks: the objects of our own kinds that they have made. What
//! service accounts have made is not watched; see [`super::recall`].

use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use crate::caches::Caches;
use pileus_api::Stack;
use pileus_api::names::STACK_UID_LABEL;
use pileus_kube_ext::cache::{Cache, Index};
use pileus_kube_ext::triggers::{Triggers, owners};

/// By the uid of the Stack whose label an object carries.
#[must_use]
pub const fn by_stack<K: Resource>() -> Index<K> {
    Index::new("stack", |object| {
        let uid = object.labels().get(STACK_UID_LABEL);
        uid.into_iter().cloned().collect()
    })
}

/// What wakes the controller of Stacks.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<Stack> {
    let stacks = &caches.stacks;
    Triggers::controller(stacks)
        .woken_by(&caches.servers, makers(stacks))
        .woken_by(&caches.server_groups, makers(stacks))
        .woken_by(&caches.images, makers(stacks))
        .woken_by(&caches.key_pairs, makers(stacks))
        .woken_by(&caches.networks, makers(stacks))
        .woken_by(&caches.subnets, makers(stacks))
        .woken_by(&caches.ports, makers(stacks))
        .woken_by(&caches.groups, makers(stacks))
        .woken_by(&caches.rules, makers(stacks))
}

/// The Stack that has made an object: its owner, or for what may outlive it the one whose label
/// it carries.
fn makers<K: Resource>(stacks: &Cache<Stack>) -> impl Fn(&K) -> Vec<ObjectRef<Stack>> + use<K> {
    let stacks = stacks.clone();
    move |object| {
        let owners = owners(object);
        if !owners.is_empty() {
            return owners;
        }
        let uids = by_stack().keys(object);
        let makers = uids
            .iter()
            .flat_map(|uid| stacks.names_by(&Index::by_uid(), uid));
        makers.collect()
    }
}
