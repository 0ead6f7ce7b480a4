//! Reconciles Servers: resolves what they refer to, creates their Ports, turns the
//! scheduler's decision into an Instance and mirrors what its host reports.

mod deleting;
pub mod guest;
pub mod plan;
mod port_claim;
pub mod resolve;
pub mod status;
#[cfg(test)]
mod tests;
mod triggers;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};

use crate::{Manager, Outcome, credentials};
pub use deleting::Deleting;
use pileus_api::names::{MANAGER, MANAGER_FINALIZER, host_namespace, instance_name};
use pileus_api::{Instance, Port, Reason, Server};
use pileus_kube_ext::objects::{Created, Objects};
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, finalize, is_gone};
use plan::{Observed, Progress, Step, UserData};
pub use triggers::{
    BY_FLAVOR, BY_HOST, BY_IMAGE, BY_KEY_PAIR, BY_NETWORK, BY_PORT, INSTANCES_BY_PORT,
    INSTANCES_BY_SERVER, PORTS_BY_OWNER, triggers,
};

/// A Secret is not watched; one that is missing is read again this often.
const SECRET_RETRY_INTERVAL: Duration = Duration::from_secs(3);
/// Transient progress is reported only when it lasts longer than this.
const REPORT_DELAY: Duration = Duration::from_secs(3);
/// The same once its Instance exists, on which its host reports.
const BUILDING_REPORT_DELAY: Duration = Duration::from_secs(30);

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer; nothing is lost by it.
pub async fn reconcile(server: Arc<Server>, manager: Arc<Manager>) -> Outcome {
    let observed = observe(&server, &manager).await?;
    let plan = plan::plan(&server, &observed);
    let mut acted = Ok(());
    for step in &plan.steps {
        tracing::debug!(server = %server.name_any(), %step, "step");
        acted = act(step, &server, &manager).await;
        if acted.is_err() || matches!(step, Step::RemoveFinalizer) {
            break;
        }
    }
    if plan
        .steps
        .iter()
        .any(|s| matches!(s, Step::RemoveFinalizer))
    {
        if acted.is_ok() {
            manager.deleting.forget(&server.uid().unwrap_or_default());
        }
        return acted.map(|()| None);
    }
    let age = server
        .metadata
        .creation_timestamp
        .as_ref()
        .and_then(|at| Duration::try_from(Timestamp::now().duration_since(at.0)).ok())
        .unwrap_or_default();
    let is_reported = server
        .status
        .as_ref()
        .is_some_and(|s| s.observed_generation.is_some());
    let delay = match plan.progress {
        Progress::Building => BUILDING_REPORT_DELAY,
        _ => REPORT_DELAY,
    };
    if plan.progress.is_transient() && !is_reported && age < delay {
        // A step that failed is tried again by itself.
        return acted.map(|()| Some(delay.saturating_sub(age)));
    }
    // What was decided from an old version is not reported: the newer one is on its way.
    if acted.as_ref().is_err_and(ApiError::is_conflict) {
        return acted.map(|()| None);
    }
    let status = status::status(&server, &observed, &plan, Timestamp::now());
    report(&server, &manager, &status).await?;
    acted?;
    Ok(plan
        .progress
        .waits_for_secret()
        .then_some(SECRET_RETRY_INTERVAL))
}

async fn report(
    server: &Server,
    manager: &Manager,
    status: &pileus_api::ServerStatus,
) -> Result<(), ApiError> {
    let api: Api<Server> = Api::namespaced(
        manager.context.client.clone(),
        &server.namespace().unwrap_or_default(),
    );
    // It belongs to the scheduler.
    let mut ours = status.clone();
    ours.placement = None;
    if !apply_status(&api, MANAGER, server, &ours).await? {
        return Ok(());
    }
    manager.context.metrics.status_written("server");
    let before = server.status.as_ref().and_then(|s| s.phase.clone());
    if before != status.phase {
        let Some(ready) = status.conditions.first() else {
            return Ok(());
        };
        let phase = status.phase.clone().unwrap_or_default();
        let note = format!("{phase}: {}", ready.message);
        let reason = status::reason_of(&ready.reason);
        if ready.status == "True"
            || matches!(phase.as_str(), "Building" | "Scheduling" | "Stopping")
        {
            manager
                .context
                .events
                .normal(server, reason, "Reconcile", note);
        } else {
            manager
                .context
                .events
                .warning(server, reason, "Reconcile", note);
        }
    }
    Ok(())
}

async fn observe(server: &Server, manager: &Manager) -> Result<Observed, ApiError> {
    let deleting = finalize::is_deleting(server);
    let crd_deleting = deleting && deleting::with_definition(server, manager).await?;
    let (instances, owned_ports) = if deleting {
        deleting::observe(server, manager, crd_deleting).await?
    } else {
        (placed_instance(server, manager), Vec::new())
    };

    // Also before it is placed, so that a missing Secret is reported at once.
    let user_data = if instances.is_empty() && !deleting {
        user_data(server, manager).await?
    } else {
        UserData::NotNeeded
    };
    let mut observed = resolve::resolve(server, manager, instances, owned_ports, user_data);
    observed.crd_deleting = crd_deleting;
    if !deleting && !plan::claim::not_needed(server, &observed).is_empty() {
        // Before a Port is given back: the cache may not have an Instance yet.
        let client = &manager.context.client;
        let instances = deleting::instances_of(server, client, false).await?;
        observed.all_instances = Some(instances);
    }
    Ok(observed)
}

/// The Instance of the present placement.
fn placed_instance(server: &Server, manager: &Manager) -> Vec<Instance> {
    let uid = server.uid().unwrap_or_default();
    let placed = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let instance = placed.and_then(|p| {
        let name = instance_name(&uid, p.epoch);
        let instances = &manager.caches.instances;
        instances.get(&host_namespace(&p.host), &name)
    });
    let instance = instance.filter(|i| i.is_genuine() && i.spec.server.uid == uid);
    instance.iter().map(|i| (**i).clone()).collect()
}

async fn user_data(server: &Server, manager: &Manager) -> Result<UserData, ApiError> {
    if let Some(text) = &server.spec.user_data {
        return Ok(UserData::Is(text.clone().into_bytes()));
    }
    let Some(from) = &server.spec.user_data_from else {
        return Ok(UserData::NotNeeded);
    };
    let namespace = server.namespace().unwrap_or_default();
    let secrets = Objects::<Secret>::namespaced(&manager.context.client, &namespace);
    let found = match secrets.get(&from.name).await {
        Err(error) if error.is_forbidden() => return Ok(UserData::NotAllowed),
        found => found?,
    };
    Ok(match found {
        None => UserData::NoSecret(from.name.clone()),
        Some(secret) => match credentials::refusal_to_guest(&secret, server) {
            Some(why) => UserData::Refused(from.name.clone(), why),
            None => match secret.data.unwrap_or_default().remove(&from.key) {
                None => UserData::NoKey(from.name.clone(), from.key.clone()),
                Some(bytes) => UserData::Is(bytes.0),
            },
        },
    })
}

/// Makes the Instance the owner of its guest's data: whatever happens to finalizers, they go with it.
async fn own_guest_data(instance: &Instance, client: &kube::Client) -> Result<(), ApiError> {
    let owner = instance.controller_owner_ref(&());
    let (Some(name), Some(owner)) = (&instance.spec.guest_data, owner) else {
        return Ok(());
    };
    let namespace = instance.namespace().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let patch = serde_json::json!({"metadata": {"ownerReferences": [owner]}});
    let patched = api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    match patched {
        Err(error) if is_gone(&error) => Ok(()),
        done => done
            .map(drop)
            .map_err(ApiError::doing(format!("give the Secret {name} its owner"))),
    }
}

async fn act(step: &Step, server: &Server, manager: &Manager) -> Result<(), ApiError> {
    let client = &manager.context.client;
    let namespace = server.namespace().unwrap_or_default();
    let servers = Objects::<Server>::namespaced(client, &namespace);
    let ports = Objects::<Port>::namespaced(client, &namespace);
    let instances = |namespace: &str| Objects::<Instance>::namespaced(client, namespace);
    let secrets = |namespace: &str| Objects::<Secret>::namespaced(client, namespace);
    let host_of = |namespace: Option<String>| namespace.unwrap_or_default();
    // What an earlier pass has created or deleted already is no error.
    match step {
        Step::AddFinalizer => {
            let added = servers.add_finalizer(server, MANAGER_FINALIZER).await;
            added.map(drop)
        }
        Step::RemoveFinalizer => {
            let removed = servers.remove_finalizer(server, MANAGER_FINALIZER).await;
            removed.map(drop)
        }
        Step::CreatePort(port) => ports.create(port).await.map(drop),
        Step::UpdatePort(port) => ports.replace(port).await.map(drop),
        Step::ClaimPort { port, from } => {
            port_claim::claim(client, server, port, from.as_ref()).await
        }
        Step::ReleasePort(port) => port_claim::release(client, port).await,
        Step::ConfirmPorts(names) => port_claim::confirm(client, server, names).await,
        Step::CreateGuestData(secret) => {
            let secrets = secrets(&host_of(secret.namespace()));
            secrets.apply(secret, MANAGER).await.map(drop)
        }
        Step::CreateInstance(instance) => {
            let instances = instances(&host_of(instance.namespace()));
            if let Created::New(made) = instances.create(instance).await? {
                own_guest_data(&made, client).await?;
            }
            manager.context.events.normal(
                server,
                Reason::Building,
                "Build",
                format!(
                    "Instance {} made on {}",
                    instance.name_any(),
                    instance.spec.host
                ),
            );
            Ok(())
        }
        Step::UpdateInstance(instance) => {
            let instances = instances(&host_of(instance.namespace()));
            instances.replace(instance).await.map(drop)
        }
        Step::DeleteInstance {
            namespace,
            name,
            uid,
            version,
        } => {
            let only = Preconditions {
                uid: Some(uid.clone()),
                resource_version: version.clone(),
            };
            instances(namespace).delete(name, only).await.map(drop)
        }
        Step::DeleteGuestData { namespace, name } => {
            let any = Preconditions::default();
            secrets(namespace).delete(name, any).await.map(drop)
        }
        Step::DeletePort { name, uid } => {
            let only = Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            };
            ports.delete(name, only).await.map(drop)
        }
    }
}
