//! The guest's NUMA nodes fit on the host's.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::placement::facts::Shape;
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

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.shape.numa.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        fit(host, &ask.request.asks.shape).is_some()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let shape = &ask.request.asks.shape;
        let nodes = shape.numa.as_ref().map_or(0, |n| n.cells.len());
        let alone = Shape {
            numa: shape.numa.clone(),
            ..Shape::default()
        };
        Miss::Unfit(if fit(host, &alone).is_some() {
            format!("has its PCI devices on other NUMA nodes than those for the guest's {nodes}")
        } else {
            format!("has no room on its NUMA nodes for the guest's {nodes}")
        })
    }
}
