//! Requests to the API server. Each may be repeated and may be interrupted at any point; the next
//! pass continues.

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, Resource, ResourceExt};

use super::decision::Decision;
use super::kinds::NetworkKind;
use pileus_api::conditions::merge;
use pileus_api::names::{MANAGER, MANAGER_FINALIZER};
use pileus_kube_ext::ApiError;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::report::apply_status_to_version;

/// Requests that are sent at the same time: enough to hide their latency, few enough for the API
/// server's fairness.
const CONCURRENCY: usize = 16;

/// A client for the kind of an object, in its namespace.
pub fn api<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), &object.namespace().unwrap_or_default())
}

/// Sends requests, some at the same time; returns the results and the errors. They are
/// a list, since a lazy iterator that lives over an `await` is not `Send` for the compiler.
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

/// Sets or removes our finalizer, if the object has not changed meanwhile. `None` if
/// the object is gone.
///
/// # Errors
/// When the object has changed, or the API server refuses or does not answer.
pub async fn set_finalizer<K: NetworkKind>(
    client: &Client,
    object: &K,
    wanted: bool,
) -> Result<Option<K>, ApiError> {
    let objects = Objects::of(api(client, object));
    let done = if wanted {
        objects.add_finalizer(object, MANAGER_FINALIZER).await
    } else {
        objects.remove_finalizer(object, MANAGER_FINALIZER).await
    };
    match done {
        Err(error) if error.is_gone() => Ok(None),
        done => done,
    }
}

/// The status to write for a decision; `None` if the object has it already.
#[must_use]
pub fn status_to_write<K: NetworkKind>(
    object: &K,
    decision: &Decision<K::Status>,
    now: Timestamp,
) -> Option<K::Status> {
    let generation = object.meta().generation;
    let conditions = merge(
        object.conditions(),
        [decision.ready.clone()],
        generation,
        now,
    );
    let mut status = decision.status.clone();
    K::set_conditions(&mut status, generation, conditions);
    (object.status() != Some(&status)).then_some(status)
}

/// Writes a status to the version of the object that it was decided for.
///
/// # Errors
/// When the object has changed, or the API server refuses or does not answer.
pub async fn write_status<K: NetworkKind>(
    client: &Client,
    object: &K,
    status: &K::Status,
) -> Result<K, ApiError> {
    apply_status_to_version(&api(client, object), MANAGER, object, status).await
}
