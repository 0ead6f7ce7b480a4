//! What wakes the controller of Stacks: the objects of our own kinds that they have made. What
//! service accounts have made is not watched; see [`super::read_cache`].

use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};

use super::caches::Caches;
use super::kinds;
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
    let own = Triggers::controller(&caches.stacks);
    kinds::all()
        .filter(|kind| kind.is_namespaced())
        .fold(own, |stacks, kind| kind.wake_makers(caches, stacks))
}

/// The Stack that has made an object: its owner, or for what may outlive it the one whose label
/// it carries.
pub(super) fn makers<K: Resource>(
    stacks: &Cache<Stack>,
) -> impl Fn(&K) -> Vec<ObjectRef<Stack>> + use<K> {
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
