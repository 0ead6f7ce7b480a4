//! Chooses what of the host a guest has to itself or is bound to, one guest at a time.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Error;
use super::observe::others_before;
use crate::Agent;
use crate::devices::give;
use crate::topology::{Held, fit, pinned};
use pileus_api::Instance;
use pileus_api::instance::InstanceSpec;
use pileus_hypervisor::{PciAddress, Topology};

/// What of the host a guest gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What its NUMA nodes are on.
    pub topology: Option<Topology>,
    /// Processors that it has to itself.
    pub pinned: BTreeSet<i32>,
    /// PCI devices.
    pub devices: Vec<PciAddress>,
}

/// Whether a guest asks for anything of this kind.
pub(super) fn is_asked(spec: &InstanceSpec) -> bool {
    spec.topology.is_some() || !spec.pci_devices.is_empty()
}

/// What of the host the guest gets, or why the host cannot give it. The processors that are
/// chosen are kept for it until the Instance is forgotten: before the domain is there, and
/// also when it is there and nobody was told so.
///
/// # Errors
/// When the hypervisor does not answer.
pub(super) async fn choose(
    object: &Instance,
    id: Uuid,
    agent: &Agent,
) -> Result<Result<Taken, String>, Error> {
    let _turn = agent.pinning.lock().await;
    // Kept by one that is forgotten meanwhile: the list may be from before its domain.
    let mut cpus = chosen(agent, id);
    let domains = agent.hypervisor.domains().await?;
    let mut devices = Vec::new();
    if !object.spec.pci_devices.is_empty() {
        devices = agent.hypervisor.pci_devices().await?;
    }
    let cells = agent.hypervisor.host().await?.cells;
    cpus.extend(chosen(agent, id));
    let others: Vec<_> = others_before(object, agent).collect();
    let elsewhere = domains.iter().filter(|domain| domain.id != id);
    let marks: Vec<_> = elsewhere.filter_map(|d| d.marks.as_ref()).collect();
    cpus.extend(marks.iter().flat_map(|marks| &marks.pinned));
    let given = others.iter().flat_map(|other| &other.spec.pci_devices);
    let mut given: BTreeSet<_> = given.filter_map(|d| d.name.parse().ok()).collect();
    given.extend(marks.iter().flat_map(|marks| &marks.devices));
    let devices = match give(&object.spec.pci_devices, &devices, &given) {
        Ok(devices) => devices,
        Err(why) => return Ok(Err(why)),
    };
    let Some(wanted) = &object.spec.topology else {
        return Ok(Ok(Taken {
            devices,
            ..Taken::default()
        }));
    };
    let held = Held {
        cpus,
        guests: others
            .iter()
            .filter_map(|other| other.spec.topology.clone())
            .collect(),
    };
    Ok(agent.runtime(id, |runtime| {
        let fitted = fit(wanted, &cells, &runtime.pinned, &held);
        let taken = fitted.map(|topology| Taken {
            pinned: pinned(wanted, &topology),
            topology: Some(topology),
            devices,
        });
        let own = taken.as_ref().map(|taken| taken.pinned.clone());
        runtime.pinned = own.unwrap_or_default();
        taken
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
