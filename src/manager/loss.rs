//! Tells the deletion of an object from the loss of its kind.
//!
//! When a CustomResourceDefinition is deleted, Kubernetes deletes every object of the kind
//! first, each with a mark of deletion and with its finalizers honoured: to a controller it
//! looks as if somebody had deleted them one by one. Nobody has. Removing a definition (with
//! a chart, a pruned application, a slip of the hand) must cost no VM and no network, so
//! what goes with its kind is let go, and what was made for it stays.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource, ResourceExt};

use pileus_api::names::MANAGER_FINALIZER;
use pileus_api::{Flavor, Image, KeyPair, Network, Port, SecurityGroup, Server, Subnet};
use pileus_kube_ext::objects::Objects;
use pileus_kube_ext::{ApiError, finalize, is_gone, is_unserved};

/// How often objects that go with their kind are looked for while controllers wait.
const LOOK: Duration = Duration::from_secs(5);

/// Whether the definition of `K` is being deleted, or gone: by a direct read of its metadata.
///
/// The definition gets its mark of deletion before any of its objects does, so a read that
/// begins after an object's mark was seen is certain.
///
/// # Errors
/// When the API server refuses or does not answer; nothing may be removed then.
pub async fn of_kind<K: Resource<DynamicType = ()>>(client: &Client) -> Result<bool, ApiError> {
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

/// Lets objects go that are deleted with their kind, for as long as it is run.
///
/// For a manager that finds some of its kinds gone when it starts: its controllers wait until
/// every kind is there again, and without this the definitions of the others could neither go
/// nor come back, held by finalizers that nobody takes.
pub async fn let_go_meanwhile(client: &Client) {
    loop {
        tokio::time::sleep(LOOK).await;
        let passes = [
            let_go::<Server>(client).await,
            let_go::<Port>(client).await,
            let_go::<Subnet>(client).await,
            let_go::<Network>(client).await,
            let_go::<SecurityGroup>(client).await,
            let_go::<Image>(client).await,
            let_go::<KeyPair>(client).await,
            let_go::<Flavor>(client).await,
        ];
        for error in passes.into_iter().filter_map(Result::err) {
            super::log_retry("objects that go with their kind", &error);
        }
    }
}

async fn let_go<K: Resource<DynamicType = ()>>(client: &Client) -> Result<(), ApiError> {
    if !of_kind::<K>(client).await? {
        return Ok(());
    }
    let kind = ApiResource::erase::<K>(&());
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let list = match all.list(&ListParams::default()).await {
        Ok(list) => list,
        // All of them have gone, and the definition after them.
        Err(error) if is_unserved(&error) => return Ok(()),
        Err(error) => return Err(ApiError::doing(format!("list all {}", kind.plural))(error)),
    };
    for object in list {
        if !finalize::is_deleting(&object) || !finalize::has(&object, MANAGER_FINALIZER) {
            continue;
        }
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &kind),
            None => all.clone(),
        };
        let objects = Objects::dynamic(api, &*kind.kind);
        let name = object.name_any();
        tracing::warn!(kind = %kind.kind, %name, "let go: the kind's definition is being deleted");
        match objects.remove_finalizer(&object, MANAGER_FINALIZER).await {
            Err(error) if is_unserved(&error.source) => {}
            done => drop(done?),
        }
    }
    Ok(())
}
