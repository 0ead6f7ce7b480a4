//! What is observed of a Server that is being deleted: few requests, whatever others have.
//!
//! As long as the caches know of something that was made for it, that is what the pass works on.
//! Only when they know of nothing more it is read directly, because a cache may be behind: the
//! Instances of its placements by their names, its Ports by its label in its own namespace.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use super::plan::refused::withdrawn;
use super::{INSTANCES_BY_SERVER, PORTS_BY_OWNER};
use crate::{Manager, crd_deletion};
use pileus_api::names::{SERVER_UID_LABEL, host_namespace, instance_name};
use pileus_api::{Instance, Port, Server};
use pileus_kube_ext::{ApiError, is_gone, is_unserved};

/// The Servers of which somebody has asked for the deletion itself, by their uids: their
/// definition may be deleted later, and they are deleted all the same.
#[derive(Default)]
pub struct Deleting(Mutex<HashSet<String>>);

impl Deleting {
    fn asked(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a Server that was released.
    pub(super) fn forget(&self, uid: &str) {
        self.asked().remove(uid);
    }
}

/// Whether a Server is being deleted only because its definition is. The API server is asked until
/// the answer is no, which is remembered.
pub(super) async fn with_definition(server: &Server, manager: &Manager) -> Result<bool, ApiError> {
    let uid = server.uid().unwrap_or_default();
    if manager.deleting.asked().contains(&uid) {
        return Ok(false);
    }
    let lost = crd_deletion::is_crd_deleting::<Server>(&manager.context.client).await?;
    if !lost {
        manager.deleting.asked().insert(uid);
    }
    Ok(lost)
}

/// The Instances of a Server, and the Ports that were made for it.
pub(super) async fn observe(
    server: &Server,
    manager: &Manager,
    with_definition: bool,
) -> Result<(Vec<Instance>, Vec<Port>), ApiError> {
    let uid = server.uid().unwrap_or_default();
    let client = &manager.context.client;
    let caches = &manager.caches;
    let mut instances = copies(&caches.instances.by(&INSTANCES_BY_SERVER, &uid));
    if instances.is_empty() {
        instances = instances_of(server, client, with_definition).await?;
    }
    if !instances.is_empty() {
        // Its Ports are left alone before its host has let go.
        return Ok((instances, Vec::new()));
    }
    let mut ports = copies(&caches.ports.by(&PORTS_BY_OWNER, &uid));
    if ports.is_empty() {
        ports = ports_of(server, client, with_definition).await?;
    }
    Ok((instances, ports))
}

fn copies<K: Clone>(cached: &[std::sync::Arc<K>]) -> Vec<K> {
    cached.iter().map(|object| (**object).clone()).collect()
}

/// The Instances of its placement, and of those that were withdrawn, by a direct read.
pub(super) async fn instances_of(
    server: &Server,
    client: &Client,
    with_definition: bool,
) -> Result<Vec<Instance>, ApiError> {
    let uid = server.uid().unwrap_or_default();
    let placed = server.status.as_ref().and_then(|s| s.placement.as_ref());
    let placed = placed.map(|p| (host_namespace(&p.host), instance_name(&uid, p.epoch)));
    let mut found = Vec::new();
    for (namespace, name) in placed.into_iter().chain(withdrawn(server)) {
        let api: Api<Instance> = Api::namespaced(client.clone(), &namespace);
        match api.get(&name).await {
            Ok(instance) => found.push(instance),
            Err(error) if is_gone(&error) => {}
            Err(error) if with_definition && is_unserved(&error) => {}
            Err(error) => {
                return Err(ApiError::doing(format!("read the Instance {name}"))(error));
            }
        }
    }
    Ok(found)
}

/// The Ports that were made for it, by a direct read. When definitions are deleted, those of Ports
/// may be gone already, and then there is nothing to wait for.
async fn ports_of(
    server: &Server,
    client: &Client,
    with_definition: bool,
) -> Result<Vec<Port>, ApiError> {
    let uid = server.uid().unwrap_or_default();
    let api: Api<Port> = Api::namespaced(client.clone(), &server.namespace().unwrap_or_default());
    let own = ListParams::default().labels(&format!("{SERVER_UID_LABEL}={uid}"));
    match api.list(&own).await {
        Ok(list) => Ok(list.items),
        Err(error) if with_definition && is_unserved(&error) => Ok(Vec::new()),
        Err(error) => Err(ApiError::doing(format!(
            "list the Ports of {}",
            server.name_any()
        ))(error)),
    }
}
