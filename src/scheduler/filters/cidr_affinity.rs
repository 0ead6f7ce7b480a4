//! The host's address is in the requested network.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `SimpleCIDRAffinityFilter`, hints `build_near_host_ip` and `cidr`.
pub struct SimpleCidrAffinityFilter;

impl Filter for SimpleCidrAffinityFilter {
    fn name(&self) -> &'static str {
        "SimpleCIDRAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.host_cidr.is_some()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let host_cidr = cycle.request.requirements.host_cidr;
        host_cidr.is_none_or(|net| host.address().is_some_and(|a| net.contains(&a)))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let address = host
            .address()
            .map_or("no known address".to_owned(), |a| a.to_string());
        let host_cidr = cycle
            .request
            .requirements
            .host_cidr
            .map(|n| n.to_string())
            .unwrap_or_default();
        RejectReason::Unsuitable(format!("has {address}, outside {host_cidr}"))
    }
}
