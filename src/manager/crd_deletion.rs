//! Distinguishes the deletion of an object from that of its CustomResourceDefinition.
//!
//! When a CustomResourceDefinition is deleted, Kubernetes deletes every object of the kind
//! first, each with a deletion timestamp and with its finalizers honoured: to a controller it
//! looks as if somebody had deleted them one by one. Nobody has. Removing a definition (with
//! a chart, with a pruned application, by mistake) must cost no VM and no network, so objects
//! that are deleted with their definition are released, and what was made for them stays.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource, ResourceExt};

use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Image, KeyPair, Network, Port, SecurityGroup, Server, Subnet};
use pileus_kube_ext::decode::Decoded;
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::{ApiError, finalize, is_gone, is_unserved};

/// How often objects that are deleted with their definition are released while controllers wait.
const RELEASE_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the definition of `K` is being deleted, or gone: by a direct read of its metadata.
///
/// The definition gets its deletion timestamp before any of its objects does, so a read that
/// begins after an object's was observed is certain.
///
/// # Errors
/// When the API server refuses or does not answer; nothing may be removed then.
pub async fn is_crd_deleting<K: Resource<DynamicType = ()>>(
    client: &Client,
) -> Result<bool, ApiError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("{}.{}", K::plural(&()), K::group(&()));
    match api.get_metadata(&name).await {
        Ok(definition) => Ok(definition.metadata.deletion_timestamp.is_some()),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => Err(ApiError::doing(format!("read the definition {name}"))(
            error,
        )),
    }
}

/// Releases objects that are deleted with their definition, for as long as it is run.
///
/// For a manager that finds some definitions missing when it starts: its controllers wait until
/// every kind is served again, and without this the other definitions that are being deleted
/// could never go, because nobody would remove the finalizers of their objects.
pub async fn release_while_crd_deleting(client: &Client) {
    loop {
        tokio::time::sleep(RELEASE_INTERVAL).await;
        let passes = [
            release::<Server>(client).await,
            release::<Port>(client).await,
            release::<Subnet>(client).await,
            release::<Network>(client).await,
            release::<SecurityGroup>(client).await,
            release::<Image>(client).await,
            release::<KeyPair>(client).await,
            release::<Flavor>(client).await,
        ];
        for error in passes.into_iter().filter_map(Result::err) {
            super::log_retry("objects that are deleted with their definition", &error);
        }
    }
}

/// The same for one kind that has a role of its own.
pub(crate) async fn release_while_deleting<K: Resource<DynamicType = ()>>(client: &Client) {
    loop {
        tokio::time::sleep(RELEASE_INTERVAL).await;
        if let Err(error) = release::<K>(client).await {
            super::log_retry("objects that are deleted with their definition", &error);
        }
    }
}

async fn release<K: Resource<DynamicType = ()>>(client: &Client) -> Result<(), ApiError> {
    if !is_crd_deleting::<K>(client).await? {
        return Ok(());
    }
    let kind = ApiResource::erase::<K>(&());
    let all: Api<Decoded<DynamicObject>> = Api::all_with(client.clone(), &kind);
    let list = match all.list(&ListParams::default()).await {
        Ok(list) => list,
        // All of them have gone, and the definition after them.
        Err(error) if is_unserved(&error) => return Ok(()),
        Err(error) => return Err(ApiError::doing(format!("list all {}", kind.plural))(error)),
    };
    for decoded in list {
        // Its metadata is all that counts, and that can be read of any.
        let mut object = DynamicObject::new(&decoded.name_any(), &kind);
        object.metadata = decoded.meta().clone();
        if !finalize::is_deleting(&object) || !finalize::has(&object, MANAGER_FINALIZER) {
            continue;
        }
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &kind),
            None => Api::all_with(client.clone(), &kind),
        };
        let objects = Objects::dynamic(api, &*kind.kind);
        let name = object.name_any();
        tracing::warn!(kind = %kind.kind, %name, "released: the kind's definition is being deleted");
        match objects.remove_finalizer(&object, MANAGER_FINALIZER).await {
            Err(error) if is_unserved(&error.source) => {}
            done => drop(done?),
        }
    }
    Ok(())
}
