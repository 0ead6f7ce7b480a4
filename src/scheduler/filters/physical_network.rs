//! The host reaches the Server's provider networks.

use super::{Ask, Filter, Host, Miss, Scope};

/// What Nova asks Placement for by physical network.
pub struct PhysicalNetworkFilter;

impl Filter for PhysicalNetworkFilter {
    fn name(&self) -> &'static str {
        "PhysicalNetworkFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.asks.physical_networks.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        host.profile()
            .physical_networks
            .as_ref()
            .is_none_or(|has| ask.request.asks.physical_networks.is_subset(has))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let wanted = &ask.request.asks.physical_networks;
        let has = host.profile().physical_networks.as_ref();
        let missing = wanted
            .iter()
            .filter(|n| has.is_some_and(|has| !has.contains(*n)));
        let missing: Vec<_> = missing.map(String::as_str).collect();
        Miss::Unfit(format!(
            "does not reach physical network {}",
            missing.join(", ")
        ))
    }
}
