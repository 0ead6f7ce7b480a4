//! The guest's NUMA nodes fit on the host's.

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
            format!("has its PCI devices on other NUMA nodes than those for the guest's {nodes}")
        } else {
            format!("has no room on its NUMA nodes for the guest's {nodes}")
        })
    }
}
