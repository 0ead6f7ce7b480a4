//! The host has the other members of the ServerGroup.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::request::GroupPolicy;

/// Nova's `ServerGroupAffinityFilter`: once a member is placed, the others are placed on
/// the same host.
pub struct ServerGroupAffinityFilter;

impl Filter for ServerGroupAffinityFilter {
    fn name(&self) -> &'static str {
        "ServerGroupAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.has_policy(GroupPolicy::Affinity) && !cycle.members.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        cycle.group_members(host) > 0
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let _ = (host, cycle);
        RejectReason::Unsuitable("has no member of the ServerGroup".to_owned())
    }
}
