//! The host is in the network asked for.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `SimpleCIDRAffinityFilter`, hints `build_near_host_ip` and `cidr`.
pub struct SimpleCidrAffinityFilter;

impl Filter for SimpleCidrAffinityFilter {
    fn name(&self) -> &'static str {
        "SimpleCIDRAffinityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.near.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let near = ask.request.asks.near;
        near.is_none_or(|net| host.address().is_some_and(|a| net.contains(&a)))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let address = host
            .address()
            .map_or("no known address".to_owned(), |a| a.to_string());
        let near = ask
            .request
            .asks
            .near
            .map(|n| n.to_string())
            .unwrap_or_default();
        Miss::Unfit(format!("has {address}, outside of {near}"))
    }
}
