//! Finalizers by hand: [`super::objects`] adds and removes them. kube's own helper drops the
//! finalizer on any `Ok` from cleanup, a requeue included, which is one slip away from leaving a
//! VM behind.

use kube::{Resource, ResourceExt};

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
