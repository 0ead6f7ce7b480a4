//! Finalizers by hand. kube's own helper drops the finalizer on any `Ok` from cleanup, a
//! requeue included, which is one slip away from leaving a VM behind.

use std::fmt::Debug;

use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ApiError;

/// Whether `object` carries `finalizer`.
#[must_use]
pub fn has<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.finalizers().iter().any(|f| f == finalizer)
}

/// Whether `object` is being deleted.
#[must_use]
pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Adds `finalizer`, if it is not there. Must not be called for an object that is being
/// deleted: the API server refuses.
///
/// # Errors
/// A conflict when the object has changed meanwhile; otherwise when the API server refuses
/// or does not answer.
pub async fn add<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<bool, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    if has(object, finalizer) {
        return Ok(false);
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.push(finalizer.to_owned());
    write(api, object, &K::kind(&()), &finalizers).await?;
    Ok(true)
}

/// Takes `finalizer` away, if it is there. An object that is gone is fine.
///
/// # Errors
/// As for [`add`].
pub async fn remove<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<bool, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    remove_of(api, object, &K::kind(&()), finalizer).await
}

/// [`remove`] for an object whose kind is known only at run time.
///
/// # Errors
/// As for [`add`].
pub async fn remove_of<K>(
    api: &Api<K>,
    object: &K,
    kind: &str,
    finalizer: &str,
) -> Result<bool, ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    if !has(object, finalizer) {
        return Ok(false);
    }
    let finalizers: Vec<_> = object
        .finalizers()
        .iter()
        .filter(|f| *f != finalizer)
        .cloned()
        .collect();
    match write(api, object, kind, &finalizers).await {
        Err(error) if error.is_gone() => Ok(false),
        done => done.map(|()| true),
    }
}

async fn write<K>(
    api: &Api<K>,
    object: &K,
    kind: &str,
    finalizers: &[String],
) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    // The version makes the patch conditional: somebody else's finalizer is never lost.
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let name = object.name_any();
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .map(drop)
        .map_err(ApiError::doing(format!(
            "set the finalizers of {kind} {name}"
        )))
}
