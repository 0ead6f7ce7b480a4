//! Reconciles Flavors: keeps one while Servers name it, and reports when it cannot be used.
//! A Flavor has no status, so reports are events.

use std::sync::Arc;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::caches::Caches;
use crate::compute::server;
use crate::{Manager, Outcome, crd_deletion, list_some};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Reason, Server, validation};
use pileus_kube_ext::cache::key_of;
use pileus_kube_ext::finalize;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::triggers::Triggers;

/// What wakes the controller of Flavors.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<Flavor> {
    Triggers::controller(&caches.flavors).woken_by_release(&caches.servers, |server: &Server| {
        let flavor = server.spec.flavor.as_ref();
        flavor.map(|name| ObjectRef::new(name))
    })
}

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(flavor: Arc<Flavor>, manager: Arc<Manager>) -> Outcome {
    let flavors = Objects::<Flavor>::all(&manager.context.client);
    let events = &manager.context.events;
    if !finalize::is_deleting(&*flavor) {
        let added = flavors.add_finalizer(&flavor, MANAGER_FINALIZER).await?;
        if added.is_some()
            && let Err(message) = validation::flavor(&flavor.spec)
        {
            events.warning(&*flavor, Reason::InvalidSpec, "Validate", message);
        }
        return Ok(None);
    }
    if !finalize::has(&*flavor, MANAGER_FINALIZER) {
        return Ok(None);
    }
    let name = flavor.name_any();
    let users = manager.caches.servers.by(&server::BY_FLAVOR, &name);
    let users: Vec<_> = users.iter().map(|server| key_of(&**server)).collect();
    if users.is_empty() || crd_deletion::is_crd_deleting::<Flavor>(&manager.context.client).await? {
        flavors.remove_finalizer(&flavor, MANAGER_FINALIZER).await?;
    } else {
        let users = list_some(users);
        let note = format!("cannot be deleted while Servers use it: {users}; delete them first");
        events.warning(&*flavor, Reason::InUse, "Delete", note);
    }
    Ok(None)
}
