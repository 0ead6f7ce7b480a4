//! The guest's NUMA nodes fit on the host's.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::scheduler::numa::fit;

/// Nova's `NUMATopologyFilter` with pinned processors and huge pages.
pub struct NumaTopologyFilter;

impl Filter for NumaTopologyFilter {
    fn name(&self) -> &'static str {
        "NUMATopologyFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.shape.numa.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let numa = ask.request.asks.shape.numa.as_ref();
        numa.is_none_or(|wanted| fit(host, wanted).is_some())
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = host;
        let numa = ask.request.asks.shape.numa.as_ref();
        let nodes = numa.map_or(0, |n| n.cells.len());
        Miss::Unfit(format!(
            "has no room on its NUMA nodes for the guest's {nodes}"
        ))
    }
}
