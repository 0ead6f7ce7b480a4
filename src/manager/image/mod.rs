//! Reconciles Images: says whether one can be used, fixes its digest by the first import,
//! and tells what hosts found.

pub mod plan;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};

use crate::{Manager, Outcome, loss};
use pileus_api::names::{MANAGER, MANAGER_FINALIZER};
use pileus_api::{Image, Instance};
use pileus_kube_ext::finalize;
use pileus_kube_ext::report::apply_status;

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(image: Arc<Image>, manager: Arc<Manager>) -> Outcome {
    let namespace = image.namespace().unwrap_or_default();
    let api: Api<Image> = Api::namespaced(manager.context.client.clone(), &namespace);
    if !finalize::is_deleting(&*image) && finalize::add(&api, &image, MANAGER_FINALIZER).await? {
        // The change wakes us again, with the version that the status is written to.
        return Ok(None);
    }
    let uid = image.uid();
    let instances: Vec<Arc<Instance>> = manager
        .stores
        .instances
        .state()
        .into_iter()
        .filter(|i| Some(&i.spec.image.uid) == uid.as_ref())
        .collect();
    let name = image.name_any();
    let users = manager
        .stores
        .servers
        .state()
        .into_iter()
        // Users in other namespaces never hold the owner back.
        .filter(|s| s.namespace().as_deref() == Some(&namespace))
        .filter(|s| {
            let reference = &s.spec.image;
            reference.name == name && reference.namespace.as_ref().is_none_or(|n| *n == namespace)
        })
        .map(|s| s.name_any())
        .collect();
    let is_deleting = finalize::is_deleting(&*image);
    let seen = plan::Seen {
        instances: instances.iter().map(AsRef::as_ref).collect(),
        users,
        kind_lost: is_deleting && loss::of_kind::<Image>(&manager.context.client).await?,
    };
    let plan = plan::plan(&image, &seen, Timestamp::now());
    if plan.release {
        finalize::remove(&api, &image, MANAGER_FINALIZER).await?;
        return Ok(None);
    }
    if is_deleting && !finalize::has(&*image, MANAGER_FINALIZER) {
        return Ok(None);
    }
    if apply_status(&api, MANAGER, &*image, &plan.status).await? {
        manager.context.metrics.status_written("image");
    }
    Ok(None)
}
