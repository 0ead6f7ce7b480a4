//! The kinds of Pileus whose objects a Stack can make: one line each in [`KINDS`].

use std::any::TypeId;
use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use kube::core::ApiResource;
use kube::core::object::HasSpec;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::caches::Caches;
use super::record::Reference;
use super::triggers::{by_stack, makers};
use pileus_api::Stack;
use pileus_kube_ext::cache::Cache;
use pileus_kube_ext::triggers::Triggers;
use pileus_stack::value::Value;

/// All of them. To add a kind, name the cache in which its objects are watched.
static KINDS: [&dyn ChildKind; 10] = [
    &Watched(|caches| &caches.servers),
    &Watched(|caches| &caches.networks),
    &Watched(|caches| &caches.subnets),
    &Watched(|caches| &caches.ports),
    &Watched(|caches| &caches.groups),
    &Watched(|caches| &caches.rules),
    &Watched(|caches| &caches.key_pairs),
    &Watched(|caches| &caches.images),
    &Watched(|caches| &caches.server_groups),
    &Watched(|caches| &caches.flavors),
];

/// All kinds of Pileus whose objects a Stack can make.
pub(super) fn all() -> impl Iterator<Item = &'static dyn ChildKind> {
    KINDS.iter().copied()
}

/// The kind with this name.
pub(super) fn find(name: &str) -> Option<&'static dyn ChildKind> {
    all().find(|kind| kind.name() == name)
}

/// The kind of an object, if it is one of these.
pub(super) fn of(object: &Reference) -> Option<&'static dyn ChildKind> {
    (object.api_version == Stack::api_version(&())).then(|| find(&object.kind))?
}

/// A kind of Pileus whose objects a Stack can make.
pub(super) trait ChildKind: Sync {
    /// Its name, such as `Server`.
    fn name(&self) -> Cow<'static, str>;

    /// Its API resource, for requests.
    fn resource(&self) -> ApiResource;

    /// Whether its objects are in namespaces. Others are made with the rights of a service account.
    fn is_namespaced(&self) -> bool;

    /// A watched object; `namespace` has no meaning if the kind is not namespaced.
    fn find(&self, caches: &Caches, namespace: &str, name: &str) -> Option<Value>;

    /// The watched objects of a namespace with the label of the Stack with this uid, and their uids.
    fn labelled(&self, caches: &Caches, namespace: &str, uid: &str) -> Vec<(Reference, String)>;

    /// Wakes the Stack that has made an object of this kind when that changes.
    fn wake_makers(&self, caches: &Caches, stacks: Triggers<Stack>) -> Triggers<Stack>;

    /// A spec with the defaults of its type; `None` if it is not a spec of this kind.
    fn with_defaults(&self, spec: &Value) -> Option<Value>;
}

/// A kind whose objects are in the cache that this function returns.
struct Watched<K: 'static>(fn(&Caches) -> &Cache<K>)
where
    K: Resource<DynamicType = ()> + Clone;

impl<K> ChildKind for Watched<K>
where
    K: Resource<DynamicType = (), Scope: 'static> + HasSpec + Clone + Serialize + 'static,
    K::Spec: Serialize + DeserializeOwned,
{
    fn name(&self) -> Cow<'static, str> {
        K::kind(&())
    }

    fn resource(&self) -> ApiResource {
        ApiResource::erase::<K>(&())
    }

    fn is_namespaced(&self) -> bool {
        TypeId::of::<K::Scope>() == TypeId::of::<NamespaceResourceScope>()
    }

    fn find(&self, caches: &Caches, namespace: &str, name: &str) -> Option<Value> {
        let namespace = if self.is_namespaced() { namespace } else { "" };
        let object = self.0(caches).get(namespace, name)?;
        serde_json::to_value(&*object).ok().map(Value::from)
    }

    fn labelled(&self, caches: &Caches, namespace: &str, uid: &str) -> Vec<(Reference, String)> {
        let objects = self.0(caches).by(&by_stack(), uid).into_iter();
        let objects = objects.filter(|object| object.namespace().as_deref() == Some(namespace));
        let reference = |name: String| Reference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: None,
            name,
        };
        objects
            .map(|object| {
                (
                    reference(object.name_any()),
                    object.uid().unwrap_or_default(),
                )
            })
            .collect()
    }

    fn wake_makers(&self, caches: &Caches, stacks: Triggers<Stack>) -> Triggers<Stack> {
        stacks.woken_by(self.0(caches), makers(&caches.stacks))
    }

    fn with_defaults(&self, spec: &Value) -> Option<Value> {
        let typed: K::Spec = serde_json::from_value(spec.clone().into()).ok()?;
        serde_json::to_value(typed).ok().map(Value::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_that_the_engine_makes_is_in_the_list() {
        for supported in pileus_stack::resource_types::all() {
            let pileus_stack::resource_types::Mapping::Objects { kind, .. } = supported.mapping
            else {
                continue;
            };
            // The template of `Kubernetes::Object` says the kind.
            assert!(kind.is_empty() || find(kind).is_some(), "{kind}");
        }
        let cluster_scoped = all().filter(|kind| !kind.is_namespaced());
        let names: Vec<_> = cluster_scoped.map(ChildKind::name).collect();
        assert_eq!(names, ["Flavor"]);
    }
}
