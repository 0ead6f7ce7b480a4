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
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::{Manager, Outcome, loss};
use pileus_api::names::{
    GUEST_DATA_KEY, MANAGER, MANAGER_FINALIZER, SERVER_UID_LABEL, host_namespace,
};
use pileus_api::{Instance, Port, Reason, Server};
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::{ApiError, finalize, find, is_gone, is_unserved};
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
    let api: Api<Secret> = Api::namespaced(
        manager.context.client.clone(),
        &server.namespace().unwrap_or_default(),
    );
    let secret = find(&api, &from.name).await;
    let secret = secret.map_err(ApiError::doing(format!("read the Secret {}", from.name)))?;
    Ok(match secret {
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
    match step {
        Step::AddFinalizer => {
            let api: Api<Server> = Api::namespaced(client.clone(), &namespace);
            finalize::add(&api, server, MANAGER_FINALIZER).await?;
        }
        Step::RemoveFinalizer => {
            let api: Api<Server> = Api::namespaced(client.clone(), &namespace);
            finalize::remove(&api, server, MANAGER_FINALIZER).await?;
        }
        Step::CreatePort(port) => {
            let api: Api<Port> = Api::namespaced(client.clone(), &namespace);
            create(&api, port).await?;
        }
        Step::CreateGuestData(secret) => {
            let host = secret.namespace().unwrap_or_default();
            let api: Api<Secret> = Api::namespaced(client.clone(), &host);
            let name = secret.name_any();
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&**secret))
                .await
                .map_err(ApiError::doing(format!(
                    "write the Secret {name} ({GUEST_DATA_KEY})"
                )))?;
        }
        Step::CreateInstance(instance) => {
            let host = instance.namespace().unwrap_or_default();
            let api: Api<Instance> = Api::namespaced(client.clone(), &host);
            create(&api, instance).await?;
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
        }
        Step::UpdateInstance(instance) => {
            let host = instance.namespace().unwrap_or_default();
            let api: Api<Instance> = Api::namespaced(client.clone(), &host);
            let name = instance.name_any();
            // `replace` carries the version that was read.
            api.replace(&name, &PostParams::default(), instance)
                .await
                .map_err(ApiError::doing(format!("change the Instance {name}")))?;
        }
        Step::DeleteInstance {
            namespace,
            name,
            uid,
            version,
        } => {
            let api: Api<Instance> = Api::namespaced(client.clone(), namespace);
            delete(&api, name, Some(uid), version.as_ref()).await?;
        }
        Step::DeleteGuestData { namespace, name } => {
            let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
            delete(&api, name, None, None).await?;
        }
        Step::DeletePort { name, uid } => {
            let api: Api<Port> = Api::namespaced(client.clone(), &namespace);
            delete(&api, name, Some(uid), None).await?;
        }
    }
    Ok(())
}

/// Creates an object; one that is there already was made by an earlier pass.
async fn create<K>(api: &Api<K>, object: &K) -> Result<(), ApiError>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let name = object.name_any();
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        done => done
            .map(drop)
            .map_err(ApiError::doing(format!("create {} {name}", K::kind(&())))),
    }
}

/// Deletes an object, and only the very one that was seen, if need be only in the version
/// that was seen; one that is gone is fine.
async fn delete<K>(
    api: &Api<K>,
    name: &str,
    uid: Option<&String>,
    version: Option<&String>,
) -> Result<(), ApiError>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let preconditions = uid.map(|uid| Preconditions {
        uid: Some(uid.clone()),
        resource_version: version.cloned(),
    });
    let params = DeleteParams {
        preconditions,
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(error) if is_gone(&error) => Ok(()),
        done => done
            .map(drop)
            .map_err(ApiError::doing(format!("delete {} {name}", K::kind(&())))),
    }
}
