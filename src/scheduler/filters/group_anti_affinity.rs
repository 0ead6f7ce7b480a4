//! The host may have another member of the ServerGroup.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::request::GroupPolicy;

fn most(cycle: &CycleState<'_>) -> u32 {
    let group = cycle.request.group.as_ref();
    group.map_or(1, |g| g.max_per_host.max(1))
}

/// Nova's `ServerGroupAntiAffinityFilter` with `max_server_per_host`.
pub struct ServerGroupAntiAffinityFilter;

impl Filter for ServerGroupAntiAffinityFilter {
    fn name(&self) -> &'static str {
        "ServerGroupAntiAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.has_policy(GroupPolicy::AntiAffinity)
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        cycle.group_members(host) < most(cycle)
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        RejectReason::Unsuitable(format!(
            "has {} members of the ServerGroup, which allows {} on one host",
            cycle.group_members(host),
            most(cycle)
        ))
    }
}
