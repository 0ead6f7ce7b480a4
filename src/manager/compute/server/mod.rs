//! Reconciles Servers: resolves what they refer to, makes their Ports, turns the
//! scheduler's decision into an Instance and mirrors what its host says.

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
use kube::api::{ListParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::{Manager, Outcome, loss};
use pileus_api::names::{MANAGER, MANAGER_FINALIZER, SERVER_UID_LABEL, host_namespace};
use pileus_api::{Instance, Port, Reason, Server};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, finalize, is_unserved};
use plan::{Seen, Standing, Step, UserData};
pub use triggers::{BY_FLAVOR, BY_HOST, BY_IMAGE, BY_KEY_PAIR, BY_NETWORK, BY_PORT, triggers};

/// A Secret is not watched; one that is missing is looked for this often.
const SECRET_RETRY: Duration = Duration::from_secs(3);
/// A Server on its way is told of when it takes longer than this.
const QUIET: Duration = Duration::from_secs(3);
/// The same once it is with its host, which speaks for itself when it has something to say.
const BUILDING_QUIET: Duration = Duration::from_secs(30);

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer; nothing is lost by it.
pub async fn reconcile(server: Arc<Server>, manager: Arc<Manager>) -> Outcome {
    let seen = observe(&server, &manager).await?;
    let plan = plan::plan(&server, &seen);
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
    let told = server
        .status
        .as_ref()
        .is_some_and(|s| s.observed_generation.is_some());
    let quiet = match plan.standing {
        Standing::Building => BUILDING_QUIET,
        _ => QUIET,
    };
    if plan.standing.is_passing() && !told && age < quiet {
        // A step that failed is tried again by itself.
        return acted.map(|()| Some(quiet.saturating_sub(age)));
    }
    // What was decided from an old view is not told: the newer one is on its way.
    if acted.as_ref().is_err_and(ApiError::is_conflict) {
        return acted.map(|()| None);
    }
    let status = status::status(&server, &seen, &plan, Timestamp::now());
    report(&server, &manager, &status).await?;
    acted?;
    Ok(plan.standing.waits_for_secret().then_some(SECRET_RETRY))
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
    // Another's part is not ours to apply.
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

async fn observe(server: &Server, manager: &Manager) -> Result<Seen, ApiError> {
    let namespace = server.namespace().unwrap_or_default();
    let uid = server.uid().unwrap_or_default();
    let deleting = finalize::is_deleting(server);
    let kind_lost = deleting && loss::of_kind::<Server>(&manager.context.client).await?;
    let instances = if deleting {
        // Before anything is let go, a direct read: a cache may have missed an Instance.
        let api: Api<Instance> = Api::all(manager.context.client.clone());
        list_of(server, &api, kind_lost).await?
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
        list_of(server, &api, kind_lost).await?
    } else {
        Vec::new()
    };
    // Also before it is placed, so that a Secret that is missing is told at once.
    let user_data = if instances.is_empty() && !deleting {
        user_data(server, manager).await?
    } else {
        UserData::NotNeeded
    };
    let mut seen = resolve::look(server, manager, instances, owned_ports, user_data);
    seen.kind_lost = kind_lost;
    Ok(seen)
}

/// What was made for a Server, by a direct read. When its kind goes, the other may have gone
/// before, and then there is nothing of it to wait for.
async fn list_of<K>(server: &Server, api: &Api<K>, kind_lost: bool) -> Result<Vec<K>, ApiError>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let uid = server.uid().unwrap_or_default();
    let params = ListParams::default().labels(&format!("{SERVER_UID_LABEL}={uid}"));
    match api.list(&params).await {
        Ok(list) => Ok(list.items),
        Err(error) if kind_lost && is_unserved(&error) => Ok(Vec::new()),
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
        Some(secret) => match secret.data.unwrap_or_default().remove(&from.key) {
            None => UserData::NoKey(from.name.clone(), from.key.clone()),
            Some(bytes) => UserData::Is(bytes.0),
        },
    })
}

async fn act(step: &Step, server: &Server, manager: &Manager) -> Result<(), ApiError> {
    let client = &manager.context.client;
    let namespace = server.namespace().unwrap_or_default();
    let servers = Objects::<Server>::namespaced(client, &namespace);
    let ports = Objects::<Port>::namespaced(client, &namespace);
    let instances = |namespace: &str| Objects::<Instance>::namespaced(client, namespace);
    let secrets = |namespace: &str| Objects::<Secret>::namespaced(client, namespace);
    let host_of = |namespace: Option<String>| namespace.unwrap_or_default();
    // What an earlier pass has created or deleted is as it should be.
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
            instances.create(instance).await?;
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
