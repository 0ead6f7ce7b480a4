//! Notices that a ConfigMap or Secret which Stacks name has changed, come or gone.
//!
//! A watch would need the right to watch every ConfigMap and Secret of the cluster, which is
//! the right to read them all: rules cannot name what users will name. So each object that a
//! Stack names is asked for by its name, with the right that reading it takes anyway; only
//! its metadata, and as the API server's own cache has it, which costs next to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::GetParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::StackManager;
use crate::log_retry;
use pileus_api::Stack;
use pileus_api::stack::SourceKind;
use pileus_kube_ext::is_gone;
use pileus_kube_ext::triggers::Triggers;

/// How often what Stacks name is read, as long as few objects are named.
const MIN_INTERVAL: Duration = Duration::from_secs(3);
/// At most this many objects are read in a second.
const MAX_READS_PER_SECOND: u32 = 50;
/// A round that takes longer shows in the role's readiness.
const ROUND_LIMIT: Duration = Duration::from_mins(10);
/// How many are read at once.
const CONCURRENCY: usize = 8;

/// An object that Stacks name: whether it is a Secret, namespace, name.
type Named = (bool, String, String);
/// Its uid and version; nothing when there is none.
type Version = Option<(String, String)>;

/// Has Stacks looked at when what they name changes, for as long as their controller runs.
pub fn start(manager: &Arc<StackManager>, triggers: &Triggers<Stack>) {
    let queue = triggers.queue().clone();
    let manager = manager.clone();
    let check = manager.context.ready.check("loop/stack-sources");
    tokio::spawn(async move {
        let mut known = BTreeMap::new();
        let mut wait = MIN_INTERVAL;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = queue.closed() => return check.done(),
            }
            check.busy(ROUND_LIMIT);
            let named = named(&manager.caches.stacks.state());
            let read = versions(&manager.context.client, named.keys()).await;
            for stack in changed(&mut known, &named, read) {
                queue.wake(stack);
            }
            check.ok();
            let count = u32::try_from(named.len()).unwrap_or(u32::MAX);
            wait = MIN_INTERVAL
                .max(Duration::from_secs(1).saturating_mul(count / MAX_READS_PER_SECOND));
        }
    });
}

/// What Stacks name, and which do.
fn named(stacks: &[Arc<Stack>]) -> BTreeMap<Named, Vec<ObjectRef<Stack>>> {
    let mut found: BTreeMap<Named, Vec<ObjectRef<Stack>>> = BTreeMap::new();
    for stack in stacks {
        let spec = &stack.spec;
        let objects = spec.files_from.iter().chain(&spec.parameters_from);
        let objects = objects.map(|object| (object.kind, &object.name));
        let environments = spec.environments.iter().filter_map(|e| e.from.as_ref());
        let keys = spec.template_from.iter().chain(environments);
        let keys = keys.map(|key| (key.kind, &key.name));
        let namespace = stack.namespace().unwrap_or_default();
        let all: BTreeSet<_> = objects
            .chain(keys)
            .map(|(kind, name)| (kind == SourceKind::Secret, name.clone()))
            .collect();
        for (is_secret, name) in all {
            let users = found.entry((is_secret, namespace.clone(), name));
            users.or_default().push(ObjectRef::from_obj(&**stack));
        }
    }
    found
}

/// Versions of what could be asked for.
async fn versions<'n>(
    client: &Client,
    named: impl Iterator<Item = &'n Named>,
) -> Vec<(Named, Version)> {
    let asked = named.cloned().map(|named| async move {
        let (is_secret, namespace, name) = &named;
        let version = if *is_secret {
            version::<Secret>(client, namespace, name).await
        } else {
            version::<ConfigMap>(client, namespace, name).await
        };
        match version {
            Ok(version) => Some((named, version)),
            Err(error) => {
                log_retry("look at what Stacks are made from", &error);
                None
            }
        }
    });
    let found = futures::stream::iter(asked).buffer_unordered(CONCURRENCY);
    found.filter_map(futures::future::ready).collect().await
}

async fn version<K>(client: &Client, namespace: &str, name: &str) -> Result<Version, kube::Error>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.get_metadata_with(name, &GetParams::any()).await {
        Ok(found) => Ok(Some((
            found.metadata.uid.unwrap_or_default(),
            found.metadata.resource_version.unwrap_or_default(),
        ))),
        Err(error) if is_gone(&error) => Ok(None),
        // Its namespace has not opted in, which the Stack says.
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The Stacks to look at: those that name what has another version than before, or is named
/// for the first time, since nobody knows which version was read.
fn changed(
    known: &mut BTreeMap<Named, Version>,
    named: &BTreeMap<Named, Vec<ObjectRef<Stack>>>,
    read: Vec<(Named, Version)>,
) -> Vec<ObjectRef<Stack>> {
    known.retain(|object, _| named.contains_key(object));
    let mut stacks = Vec::new();
    for (object, version) in read {
        if known.get(&object) == Some(&version) {
            continue;
        }
        stacks.extend(named.get(&object).into_iter().flatten().cloned());
        known.insert(object, version);
    }
    stacks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_stack_is_woken_once_for_each_version_of_what_it_names() {
        let stack: Stack = serde_json::from_value(serde_json::json!({
            "apiVersion": "pileus.dev/v1alpha1", "kind": "Stack",
            "metadata": {"name": "shop", "namespace": "demo"},
            "spec": {
                "templateFrom": {"name": "t", "key": "k"},
                "filesFrom": [{"name": "t"}],
                "parametersFrom": [{"name": "t", "kind": "Secret"}],
                "environments": [{"name": "e", "from": {"name": "e", "key": "k"}}],
            },
        }))
        .unwrap();
        let named = named(&[Arc::new(stack)]);
        let keys: Vec<_> = named.keys().map(|(s, _, name)| (*s, &**name)).collect();
        assert_eq!(keys, [(false, "e"), (false, "t"), (true, "t")]);
        let mut known = BTreeMap::new();
        let object = (false, "demo".to_owned(), "t".to_owned());
        let version = |text: &str| Some((String::from("u"), text.to_owned()));
        let mut woken =
            |version: Version| changed(&mut known, &named, vec![(object.clone(), version)]).len();
        assert_eq!(woken(version("1")), 1);
        assert_eq!(woken(version("1")), 0);
        assert_eq!(woken(version("2")), 1);
        assert_eq!(woken(None), 1);
        assert_eq!(woken(None), 0);
    }
}
