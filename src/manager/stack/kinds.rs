//! The kinds of Pileus whose objects a Stack can make: one line each in [`KINDS`].

use std::any::TypeId;
use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use kube::core::ApiResource;
use kube::core::object::HasSpec;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::Reference;
use crate::Stores;
use pileus_api::Stack;
use pileus_api::names::STACK_UID_LABEL;
use pileus_stack::value::Value;

/// All of them. To add a kind, name the store in which its objects are watched.
static KINDS: [&dyn ChildKind; 10] = [
    &Watched(|stores| &stores.servers),
    &Watched(|stores| &stores.networks),
    &Watched(|stores| &stores.subnets),
    &Watched(|stores| &stores.ports),
    &Watched(|stores| &stores.groups),
    &Watched(|stores| &stores.rules),
    &Watched(|stores| &stores.key_pairs),
    &Watched(|stores| &stores.images),
    &Watched(|stores| &stores.server_groups),
    &Watched(|stores| &stores.flavors),
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
    fn find(&self, stores: &Stores, namespace: &str, name: &str) -> Option<Value>;

    /// The watched objects of a namespace with the label of the Stack with this uid, and their uids.
    fn labelled(&self, stores: &Stores, namespace: &str, uid: &str) -> Vec<(Reference, String)>;

    /// A spec with the defaults of its type; `None` if it is not a spec of this kind.
    fn with_defaults(&self, spec: &Value) -> Option<Value>;
}

/// A kind whose objects are in the store that this function returns.
struct Watched<K: Resource + 'static>(fn(&Stores) -> &Store<K>)
where
    K::DynamicType: std::hash::Hash + Eq;

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

    fn find(&self, stores: &Stores, namespace: &str, name: &str) -> Option<Value> {
        let namespace = if self.is_namespaced() { namespace } else { "" };
        let object = Stores::find(self.0(stores), namespace, name)?;
        serde_json::to_value(&*object).ok().map(Value::from)
    }

    fn labelled(&self, stores: &Stores, namespace: &str, uid: &str) -> Vec<(Reference, String)> {
        let objects = self.0(stores).state().into_iter();
        let objects = objects.filter(|object| {
            let label = object.labels().get(STACK_UID_LABEL);
            label.is_some_and(|label| label == uid)
                && object.namespace().as_deref() == Some(namespace)
        });
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
