//! The host has room for another member of the group.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::placement::request::GroupPolicy;

fn most(ask: &Ask<'_>) -> u32 {
    let group = ask.request.group.as_ref();
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

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.has_policy(GroupPolicy::AntiAffinity)
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        ask.group_members(host) < most(ask)
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        Miss::Unfit(format!(
            "holds {} of the ServerGroup, which allows {} on one host",
            ask.group_members(host),
            most(ask)
        ))
    }
}
