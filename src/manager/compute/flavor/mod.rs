//! Reconciles Flavors: keeps one while Servers name it, and says when it cannot be used.
//! A Flavor has no status, so what is to be said is said by events.

use std::sync::Arc;

use kube::{Api, ResourceExt};

use crate::{Manager, Outcome, loss, name_some};
use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Reason, validation};
use pileus_kube_ext::finalize;

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(flavor: Arc<Flavor>, manager: Arc<Manager>) -> Outcome {
    let api: Api<Flavor> = Api::all(manager.context.client.clone());
    let events = &manager.context.events;
    if !finalize::is_deleting(&*flavor) {
        if finalize::add(&api, &flavor, MANAGER_FINALIZER).await?
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
    let users: Vec<_> = manager
        .stores
        .servers
        .state()
        .into_iter()
        .filter(|s| s.spec.flavor.as_ref() == Some(&name))
        .map(|s| format!("{}/{}", s.namespace().unwrap_or_default(), s.name_any()))
        .collect();
    if users.is_empty() || loss::of_kind::<Flavor>(&manager.context.client).await? {
        finalize::remove(&api, &flavor, MANAGER_FINALIZER).await?;
    } else {
        let users = name_some(users);
        let note = format!("cannot be deleted while Servers use it: {users}; delete them first");
        events.warning(&*flavor, Reason::InUse, "Delete", note);
    }
    Ok(None)
}
