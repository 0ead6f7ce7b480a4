//! The host holds the group.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::placement::request::GroupPolicy;

/// Nova's `ServerGroupAffinityFilter`: once a member is placed, the others go there.
pub struct ServerGroupAffinityFilter;

impl Filter for ServerGroupAffinityFilter {
    fn name(&self) -> &'static str {
        "ServerGroupAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.has_policy(GroupPolicy::Affinity) && !ask.members.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        ask.group_members(host) > 0
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = (host, ask);
        Miss::Unfit("holds no member of the ServerGroup".to_owned())
    }
}
