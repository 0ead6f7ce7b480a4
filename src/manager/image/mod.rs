//! Reconciles Images: reports whether one can be used, fixes its digest by the first import,
//! and reports what hosts found.

pub mod plan;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::caches::Caches;
use crate::compute::server;
use crate::{Manager, Outcome, crd_deletion};
use pileus_api::names::{MANAGER, MANAGER_FINALIZER};
use pileus_api::{Image, Instance, Server};
use pileus_kube_ext::cache::{Index, key_of};
use pileus_kube_ext::finalize;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::triggers::Triggers;

/// By the uid of the Image that an Instance is made from.
pub const INSTANCES_BY_IMAGE: Index<Instance> = Index::new("image", |instance| {
    // Others' objects of this kind say nothing of any Image.
    let genuine = instance
        .is_genuine()
        .then(|| instance.spec.image.uid.clone());
    genuine.into_iter().collect()
});

/// What wakes the controller of Images.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<Image> {
    Triggers::controller(&caches.images)
        .woken_by(&caches.instances, |instance: &Instance| {
            let name = instance.spec.image.name.split_once('/');
            name.map(|(namespace, name)| ObjectRef::new(name).within(namespace))
        })
        .woken_by_release(&caches.servers, |server: &Server| {
            let image = &server.spec.image;
            let namespace = image.namespace.clone().or_else(|| server.namespace());
            Some(ObjectRef::new(&image.name).within(&namespace.unwrap_or_default()))
        })
}

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(image: Arc<Image>, manager: Arc<Manager>) -> Outcome {
    let namespace = image.namespace().unwrap_or_default();
    let images = Objects::<Image>::namespaced(&manager.context.client, &namespace);
    let is_deleting = finalize::is_deleting(&*image);
    if !is_deleting && let Some(_) = images.add_finalizer(&image, MANAGER_FINALIZER).await? {
        // The change wakes us again, with the version that the status is written to.
        return Ok(None);
    }
    let caches = &manager.caches;
    let instances = caches
        .instances
        .by(&INSTANCES_BY_IMAGE, &image.uid().unwrap_or_default());
    let users = caches.servers.by(&server::BY_IMAGE, &key_of(&*image));
    let users = users
        .iter()
        // Users in other namespaces never keep an Image from being deleted.
        .filter(|server| server.namespace().as_deref() == Some(&namespace))
        .map(|server| server.name_any())
        .collect();
    let observed = plan::Observed {
        instances: instances
            .iter()
            .map(AsRef::as_ref)
            .filter(|instance| {
                let made_for = &instance.spec.server;
                let server = caches.servers.get(&made_for.namespace, &made_for.name);
                server.is_some_and(|server| plan::is_made_from(instance, &image, &server))
            })
            .collect(),
        users,
        crd_deleting: is_deleting
            && crd_deletion::is_crd_deleting::<Image>(&manager.context.client).await?,
    };
    let plan = plan::plan(&image, &observed, Timestamp::now());
    if plan.release {
        images.remove_finalizer(&image, MANAGER_FINALIZER).await?;
        return Ok(None);
    }
    if is_deleting && !finalize::has(&*image, MANAGER_FINALIZER) {
        return Ok(None);
    }
    if apply_status(images.api(), MANAGER, &*image, &plan.status).await? {
        manager.context.metrics.status_written("image");
    }
    Ok(None)
}
