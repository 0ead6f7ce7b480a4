//! Allocates and releases addresses: an `IPAllocation` is the lock on an address.

use std::collections::HashMap;
use std::sync::Arc;

use kube::api::Preconditions;
use kube::{Client, ResourceExt};

use super::overlay::Overlay;
use crate::network::address_pool::{Holder, subnet_uid};
use crate::network::kinds::AllocationChanges;
use crate::network::requests::{all, api};
use pileus_api::{IPAllocation, Port};
use pileus_kube_ext::objects::{Created, Objects};
use pileus_kube_ext::{ApiError, chain};

/// The outcome of the allocation of a plan's addresses.
pub(super) struct Allocated {
    /// One of them is held by another.
    pub conflict: bool,
    /// Why an address could not be allocated now, by the uid of the Port or Subnet that needs it.
    pub failures: HashMap<String, String>,
}

/// Allocates the addresses of a plan. What cannot be allocated now waits for the next pass with
/// its Port or Subnet, and nobody else with it.
pub(super) async fn allocate_all(
    client: &Client,
    overlay: &mut Overlay<IPAllocation>,
    changes: &AllocationChanges,
) -> Allocated {
    let mut failed: HashMap<String, String> = HashMap::new();
    let replaced = changes
        .replaced
        .iter()
        .cloned()
        .map(|allocation| async move {
            let name = allocation.name_any();
            Ok((name, release_replaced(client, allocation).await))
        });
    for (name, done) in all(replaced.collect()).await.0 {
        match done {
            Ok(uid) => uid.iter().for_each(|uid| overlay.deleted(uid)),
            Err(error) => {
                failed.insert(name, chain(&error));
            }
        }
    }
    let mut conflict = false;
    let wanted = changes
        .allocate
        .iter()
        .filter(|a| !failed.contains_key(&a.name_any()));
    let creates = wanted.cloned().map(|allocation| async move {
        let done = allocate(client, allocation.clone()).await;
        Ok((allocation, done))
    });
    for (wanted, done) in all(creates.collect()).await.0 {
        match done {
            Ok(Allocation::Created(allocation)) => overlay.created(allocation),
            Ok(Allocation::Found(allocation)) => {
                conflict |= Holder::of(&wanted) != Holder::of(&allocation);
                overlay.created(allocation);
            }
            Err(error) => {
                failed.insert(wanted.name_any(), chain(&error));
            }
        }
    }
    let mut failures = HashMap::new();
    for allocation in &changes.allocate {
        if let Some(error) = failed.get(&allocation.name_any()) {
            failures.insert(needed_by(allocation).to_owned(), error.clone());
        }
    }
    Allocated { conflict, failures }
}

/// uid of the Port or Subnet that needs an address.
pub(super) fn needed_by(allocation: &IPAllocation) -> &str {
    let port = allocation.spec.port_uid.as_deref();
    port.unwrap_or_else(|| subnet_uid(allocation))
}

/// Releases the addresses of a plan whose rows are removed. Returns why that failed, by the uid of
/// the Port or Subnet that had the address.
pub(super) async fn release_all(
    client: &Client,
    overlay: &mut Overlay<IPAllocation>,
    changes: &AllocationChanges,
) -> HashMap<String, String> {
    let releases = changes
        .release
        .iter()
        .cloned()
        .map(|allocation| async move {
            let holder = needed_by(&allocation).to_owned();
            Ok((holder, release(client, allocation).await))
        });
    let mut failures = HashMap::new();
    for (holder, done) in all(releases.collect()).await.0 {
        match done {
            Ok(uid) => overlay.deleted(&uid),
            Err(error) => {
                failures.insert(holder, chain(&error));
            }
        }
    }
    failures
}

/// An address that is allocated now.
enum Allocation {
    /// It was free.
    Created(IPAllocation),
    /// It was allocated already: by a pass of ours that was interrupted, or for another.
    Found(IPAllocation),
}

/// Allocates an address: the object's creation is the lock.
async fn allocate(client: &Client, wanted: IPAllocation) -> Result<Allocation, ApiError> {
    let objects = Objects::of(api(client, &wanted));
    match objects.create(&wanted).await? {
        Created::New(created) => Ok(Allocation::Created(created)),
        Created::AlreadyExists => {
            let name = wanted.name_any();
            let found = objects.api().get(&name).await;
            found
                .map(Allocation::Found)
                .map_err(ApiError::doing(format!("read IPAllocation {name}")))
        }
    }
}

/// Releases an address, if it is still the same object. Returns its uid.
async fn release(client: &Client, allocation: Arc<IPAllocation>) -> Result<String, ApiError> {
    let uid = allocation.uid().unwrap_or_default();
    let same = Preconditions {
        uid: Some(uid.clone()),
        resource_version: None,
    };
    let objects = Objects::of(api(client, &*allocation));
    match objects.delete(&allocation.name_any(), same).await {
        // A conflict says that another object has the name now, so this one is gone.
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(uid),
    }
}

/// Releases an address whose holder was replaced by a Port of the same name, once the API server
/// confirms that. Returns the allocation's uid if it is gone.
async fn release_replaced(
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
    let ports = Objects::<Port>::namespaced(client, &namespace);
    let holder = ports.get(&name).await?;
    if holder.is_some_and(|port| port.uid() == spec.port_uid) {
        return Ok(None);
    }
    release(client, allocation).await.map(Some)
}
