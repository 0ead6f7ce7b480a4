//! Reconciles Servers: resolves what they refer to, creates their Ports, turns the
//! scheduler's decision into an Instance and mirrors what its host reports.

pub mod guest;
pub mod plan;
pub mod resolve;
pub mod status;
#[cfg(test)]
mod tests;
mod triggers;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};

use crate::{Manager, Outcome, crd_deletion, credentials};
use pileus_api::names::{MANAGER, MANAGER_FINALIZER, SERVER_UID_LABEL, host_namespace};
use pileus_api::{Instance, Port, Reason, Server};
use pileus_kube_ext::objects::{Created, Objects};
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, finalize, is_gone, is_unserved};
use plan::{Observed, Progress, Step, UserData};
pub use triggers::{BY_FLAVOR, BY_HOST, BY_IMAGE, BY_KEY_PAIR, BY_NETWORK, BY_PORT, triggers};

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
    let namespace = server.namespace().unwrap_or_default();
    let uid = server.uid().unwrap_or_default();
    let deleting = finalize::is_deleting(server);
    let crd_deleting =
        deleting && crd_deletion::is_crd_deleting::<Server>(&manager.context.client).await?;
    let instances = if deleting {
        // Before anything is released, a direct read: a cache may have missed an Instance.
        let api: Api<Instance> = Api::all(manager.context.client.clone());
        list_of(server, &api, crd_deleting).await?
    } else {
        let placed = server.status.as_ref().and_then(|s| s.placement.as_ref());
        placed
            .and_then(|p| {
                let name = pileus_api::names::instance_name(&uid, p.epoch);
                manager
                    .caches
                    .instances
                    .get(&host_namespace(&p.host), &name)
            })
            .map(|i| vec![(*i).clone()])
            .unwrap_or_default()
    };
    let owned_ports = if deleting {
        let api: Api<Port> = Api::namespaced(manager.context.client.clone(), &namespace);
        list_of(server, &api, crd_deleting).await?
    } else {
        Vec::new()
    };
    // Also before it is placed, so that a missing Secret is reported at once.
    let user_data = if instances.is_empty() && !deleting {
        user_data(server, manager).await?
    } else {
        UserData::NotNeeded
    };
    let mut observed = resolve::resolve(server, manager, instances, owned_ports, user_data);
    observed.crd_deleting = crd_deleting;
    Ok(observed)
}

/// What was created for a Server, by a direct read. When its definition is deleted, the other
/// kind's may be gone already, and then there is nothing to wait for.
async fn list_of<K>(server: &Server, api: &Api<K>, crd_deleting: bool) -> Result<Vec<K>, ApiError>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let uid = server.uid().unwrap_or_default();
    let params = ListParams::default().labels(&format!("{SERVER_UID_LABEL}={uid}"));
    match api.list(&params).await {
        Ok(list) => Ok(list.items),
        Err(error) if crd_deleting && is_unserved(&error) => Ok(Vec::new()),
        Err(error) => Err(ApiError::doing(format!(
            "list the {} of {}",
            K::plural(&()),
            server.name_any()
        ))(error)),
    }
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
    Ok(match secrets.get(&from.name).await? {
        None => UserData::NoSecret(from.name.clone()),
        Some(secret) => match credentials::refusal(&secret) {
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
