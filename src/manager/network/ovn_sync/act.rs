//! The effects of a pass on the API server. Each may be repeated and may be cut off at any
//! point; the next pass goes on.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::object::HasStatus;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::network::decision::Decision;
use pileus_api::conditions::merge;
use pileus_api::names::{MANAGER, MANAGER_FINALIZER};
use pileus_api::{
    IPAllocation, Network, NetworkStatus, Port, PortStatus, SecurityGroup, SecurityGroupRule,
    SecurityGroupRuleStatus, SecurityGroupStatus, Subnet, SubnetStatus,
};
use pileus_kube_ext::report::apply_status_to_version;
use pileus_kube_ext::{ApiError, find, is_gone};

/// Requests on their way at once: enough to hide their latency, few enough for the API
/// server's fairness.
const CONCURRENCY: usize = 16;

/// A status with generation and conditions.
pub trait Reported: Clone + PartialEq + Serialize + Send + Sync {
    /// Its conditions.
    fn conditions(&self) -> &[Condition];
    /// Sets generation and conditions.
    fn complete(&mut self, generation: Option<i64>, conditions: Vec<Condition>);
}

macro_rules! reported {
    ($($status:ty),+) => {$(
        impl Reported for $status {
            fn conditions(&self) -> &[Condition] {
                &self.conditions
            }
            fn complete(&mut self, generation: Option<i64>, conditions: Vec<Condition>) {
                self.observed_generation = generation;
                self.conditions = conditions;
            }
        }
    )+};
}
reported!(
    NetworkStatus,
    SubnetStatus,
    PortStatus,
    SecurityGroupStatus,
    SecurityGroupRuleStatus
);

/// A kind that a pass writes to.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status: Reported>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
}
impl Kind for Network {}
impl Kind for Subnet {}
impl Kind for Port {}
impl Kind for SecurityGroup {}
impl Kind for SecurityGroupRule {}

fn api<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Runs requests, some at once; gives what succeeded and the errors. They come as a list, since
/// a lazy iterator held over an `await` is not `Send` for the compiler.
pub async fn all<T, F>(requests: Vec<F>) -> (Vec<T>, Vec<ApiError>)
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut done = Vec::new();
    let mut errors = Vec::new();
    let mut running = futures::stream::iter(requests).buffer_unordered(CONCURRENCY);
    while let Some(result) = running.next().await {
        match result {
            Ok(value) => done.push(value),
            Err(error) => errors.push(error),
        }
    }
    (done, errors)
}

/// Sets our finalizer or takes it away, if the object has not changed meanwhile. `None` if
/// the object is gone.
///
/// # Errors
/// When the object has changed, or the API server refuses or does not answer.
pub async fn set_finalizer<K: Kind>(
    client: &Client,
    object: &K,
    wanted: bool,
) -> Result<Option<K>, ApiError> {
    let mut finalizers: Vec<_> = object.finalizers().to_vec();
    finalizers.retain(|f| f != MANAGER_FINALIZER);
    if wanted {
        finalizers.push(MANAGER_FINALIZER.to_owned());
    }
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let name = object.name_any();
    let done = api(client, object)
        .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match done {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(ApiError::doing(format!(
            "set the finalizers of {} {name}",
            K::kind(&())
        ))(error)),
    }
}

/// The status to write for a decision, unless it is there already.
#[must_use]
pub fn status_to_write<K: Kind>(
    object: &K,
    decision: &Decision<K::Status>,
    now: Timestamp,
) -> Option<K::Status> {
    let current = object.status();
    let generation = object.meta().generation;
    let old = current.map_or(&[][..], Reported::conditions);
    let conditions = merge(old, [decision.ready.clone()], generation, now);
    let mut status = decision.status.clone();
    status.complete(generation, conditions);
    (current != Some(&status)).then_some(status)
}

/// Writes a status to the version of the object that it was decided for.
///
/// # Errors
/// When the object has changed, or the API server refuses or does not answer.
pub async fn write_status<K: Kind>(
    client: &Client,
    object: &K,
    status: &K::Status,
) -> Result<K, ApiError> {
    apply_status_to_version(&api(client, object), MANAGER, object, status).await
}

/// What came of taking an address.
pub enum Taken {
    /// It is ours.
    Made(IPAllocation),
    /// It was there already: ours from a start that was broken off, or another's.
    Found(IPAllocation),
}

/// Takes an address: the object's creation is the lock.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn take(client: &Client, wanted: IPAllocation) -> Result<Taken, ApiError> {
    let api = api(client, &wanted);
    let doing = || format!("take the address {}", wanted.spec.address);
    match api.create(&PostParams::default(), &wanted).await {
        Ok(made) => Ok(Taken::Made(made)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => api
            .get(&wanted.name_any())
            .await
            .map(Taken::Found)
            .map_err(ApiError::doing(doing())),
        Err(error) => Err(ApiError::doing(doing())(error)),
    }
}

/// Gives an address up, if it is still the same object. Returns its uid.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn give_up(client: &Client, allocation: Arc<IPAllocation>) -> Result<String, ApiError> {
    let uid = allocation.uid().unwrap_or_default();
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let name = allocation.name_any();
    match api(client, &*allocation).delete(&name, &params).await {
        Ok(_) => Ok(uid),
        // A conflict says that another object has the name now, so this one is gone.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(uid),
        Err(error) if is_gone(&error) => Ok(uid),
        Err(error) => Err(ApiError::doing(format!(
            "give up the address {}",
            allocation.spec.address
        ))(error)),
    }
}

/// Gives up an address whose holder was replaced by a Port of the same name, once the API
/// server itself says so. Returns the allocation's uid if it is gone.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn give_up_stale(
    client: &Client,
    allocation: Arc<IPAllocation>,
) -> Result<Option<String>, ApiError> {
    let spec = &allocation.spec;
    let namespace = spec
        .port_namespace
        .clone()
        .or_else(|| allocation.namespace())
        .unwrap_or_default();
    let name = spec.port.clone().unwrap_or_default();
    let ports: Api<Port> = Api::namespaced(client.clone(), &namespace);
    let holder = find(&ports, &name)
        .await
        .map_err(ApiError::doing(format!("look for Port {namespace}/{name}")))?;
    if holder.is_some_and(|port| port.uid() == spec.port_uid) {
        return Ok(None);
    }
    give_up(client, allocation).await.map(Some)
}
