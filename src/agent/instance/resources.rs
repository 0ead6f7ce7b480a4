//! Reads which resources of the host are in use, and reserves those of one guest at a time.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Error;
use super::observe::others_before;
use super::plan::resources::{HostResources, Inventory, allocate};
use crate::Agent;
use crate::devices::allowed;
use pileus_api::Instance;

/// Allocates the host resources of a guest, or returns why the host cannot give them. The
/// processors stay reserved for it until the Instance is forgotten: before the domain is
/// defined, and also when it is defined and that could not be reported.
///
/// # Errors
/// When the hypervisor does not answer.
pub(super) async fn reserve(
    object: &Instance,
    id: Uuid,
    agent: &Agent,
) -> Result<Result<HostResources, String>, Error> {
    let _turn = agent.pinning.lock().await;
    // Also of an Instance that is forgotten meanwhile: the list of domains may be from before
    // its domain was defined.
    let mut reserved = reserved_for_others(agent, id);
    let domains = agent.hypervisor.domains().await?;
    let mut devices = Vec::new();
    if !object.spec.pci_devices.is_empty() {
        let found = agent.hypervisor.pci_devices().await?;
        devices = allowed(found, &agent.config.allow_pci_devices);
    }
    let cells = agent.hypervisor.host().await?.cells;
    reserved.extend(reserved_for_others(agent, id));
    let others: Vec<_> = others_before(object, agent).collect();
    let others: Vec<_> = others.iter().map(|other| &other.spec).collect();
    let inventory = Inventory {
        cells: &cells,
        devices: &devices,
        domains: &domains,
        others: &others,
    };
    Ok(agent.runtime(id, |runtime| {
        let kept = &runtime.pinned;
        let allocated = allocate(&object.spec, id, &inventory, &reserved, kept);
        let pinned = allocated.as_ref().map(|found| found.pinned.clone());
        runtime.pinned = pinned.unwrap_or_default();
        allocated
    }))
}

fn reserved_for_others(agent: &Agent, own: Uuid) -> BTreeSet<i32> {
    agent.all_runtimes(|all| {
        let others = all.iter().filter(|(id, _)| **id != own);
        others
            .flat_map(|(_, runtime)| &runtime.pinned)
            .copied()
            .collect()
    })
}
