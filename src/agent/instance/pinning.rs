//! Chooses for a guest with NUMA nodes what of the host they are on, one guest at a time.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Error;
use super::observe::others_before;
use crate::agent::Agent;
use crate::agent::topology::{Held, fit, pinned};
use crate::api::Instance;
use crate::api::topology::GuestTopology;
use crate::drivers::hypervisor::Topology;

/// What of the host the guest's nodes are on, or why the host cannot hold them. What is
/// chosen is kept for it until the Instance is forgotten: before the domain is there, and
/// also when it is there and nobody was told so.
///
/// # Errors
/// When the hypervisor does not answer.
pub(super) async fn choose(
    object: &Instance,
    id: Uuid,
    wanted: &GuestTopology,
    agent: &Agent,
) -> Result<Result<Topology, String>, Error> {
    let _turn = agent.pinning.lock().await;
    // Kept by one that is forgotten meanwhile: the list may be from before its domain.
    let mut cpus = chosen(agent, id);
    let domains = agent.hypervisor.domains().await?;
    let cells = agent.hypervisor.host().await?.cells;
    cpus.extend(chosen(agent, id));
    let others = domains.iter().filter(|domain| domain.id != id);
    let marks = others.filter_map(|domain| domain.marks.as_ref());
    cpus.extend(marks.flat_map(|marks| &marks.pinned));
    let held = Held {
        cpus,
        guests: others_before(object, agent)
            .filter_map(|other| other.spec.topology.clone())
            .collect(),
    };
    Ok(agent.runtime(id, |runtime| {
        let fitted = fit(wanted, &cells, &runtime.pinned, &held);
        runtime.pinned = match &fitted {
            Ok(fitted) => pinned(wanted, fitted),
            Err(_) => BTreeSet::new(),
        };
        fitted
    }))
}

/// Processors that were chosen for others.
fn chosen(agent: &Agent, own: Uuid) -> BTreeSet<i32> {
    agent.all_runtimes(|all| {
        let others = all.iter().filter(|(id, _)| **id != own);
        others
            .flat_map(|(_, runtime)| &runtime.pinned)
            .copied()
            .collect()
    })
}
