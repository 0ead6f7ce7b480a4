//! The host is up and takes new Servers.

use super::{Filter, HostState, Miss, Request};

/// Nova's `ComputeFilter`: service up, enabled, not in maintenance.
pub struct ComputeFilter;

impl Filter for ComputeFilter {
    fn name(&self) -> &'static str {
        "ComputeFilter"
    }

    fn passes(&self, host: &HostState, _: &Request) -> bool {
        let f = &host.facts;
        f.ready && f.schedulable && !f.maintenance && f.problem.is_none()
    }

    fn miss(&self, host: &HostState, _: &Request) -> Miss {
        let f = &host.facts;
        Miss::Unfit(if let Some(problem) = &f.problem {
            problem.clone()
        } else if !f.ready {
            "is not Ready".to_owned()
        } else if f.maintenance {
            "is in maintenance (spec.maintenance)".to_owned()
        } else {
            "is not schedulable (spec.schedulable is false)".to_owned()
        })
    }
}
