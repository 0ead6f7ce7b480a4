//! The guest's NUMA nodes fit on the host's NUMA nodes.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::facts::ResourceRequest;
use crate::placement::numa::fit;

/// Nova's `NUMATopologyFilter` with pinned processors and huge pages.
pub struct NumaTopologyFilter;

impl Filter for NumaTopologyFilter {
    fn name(&self) -> &'static str {
        "NUMATopologyFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.resources.numa.is_some()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        fit(host, &cycle.request.requirements.resources).is_some()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let resources = &cycle.request.requirements.resources;
        let nodes = resources.numa.as_ref().map_or(0, |n| n.nodes.len());
        let alone = ResourceRequest {
            numa: resources.numa.clone(),
            ..ResourceRequest::default()
        };
        RejectReason::Unsuitable(if fit(host, &alone).is_some() {
            format!("has no PCI devices on the NUMA nodes that fit the {nodes} of the guest")
        } else {
            format!("has not enough free resources on its NUMA nodes for the {nodes} of the guest")
        })
    }
}
