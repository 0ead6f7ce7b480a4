//! Reads the state of a cluster once, to answer questions.

use std::collections::BTreeSet;
use std::fmt::Debug;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::state::State;
use pileus_api::{
    Flavor, Host, HostAggregate, Image, Instance, SchedulerPolicy, Server, ServerGroup,
};
use pileus_kube_ext::ApiError;
use pileus_kube_ext::decode::Decoded;

/// All objects of a kind but those that cannot be read, which are named on standard error.
async fn list<K>(client: &Client) -> Result<Vec<K>, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let api: Api<Decoded<K>> = Api::all(client.clone());
    let listed = api.list(&ListParams::default()).await;
    let listed = listed.map_err(ApiError::doing(format!("list the {}", K::plural(&()))))?;
    let read = listed.items.into_iter().filter_map(|object| {
        if let Err(unreadable) = &object.0 {
            let (kind, name) = (K::kind(&()), object.name_any());
            let namespace = object.namespace().unwrap_or_default();
            eprintln!("left out: {kind} {namespace}/{name}: {unreadable}");
        }
        object.ok()
    });
    Ok(read.collect())
}

/// Reads all objects that decisions depend on.
///
/// # Errors
/// If the API server refuses a list or does not answer; the right to list each kind is needed.
pub async fn read(client: &Client) -> Result<State, ApiError> {
    let mut state = State::default();
    let none = BTreeSet::new();
    state.priority_classes_listed(&list::<PriorityClass>(client).await?);
    state.policies_listed(list::<SchedulerPolicy>(client).await?, &none);
    state.flavors_listed(list::<Flavor>(client).await?);
    state.images_listed(list::<Image>(client).await?);
    state.groups_listed(list::<ServerGroup>(client).await?);
    state.aggregates_listed(list::<HostAggregate>(client).await?, &none);
    state.hosts_listed(&list::<Host>(client).await?, &none);
    state.instances_listed(&list::<Instance>(client).await?, &none);
    state.servers_listed(list::<Server>(client).await?, &none);
    Ok(state)
}
