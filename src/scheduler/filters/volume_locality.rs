//! The host reaches the Server's volumes.

use super::{Ask, Filter, Host, Miss, Scope};

/// Local volumes bind a Server to the hosts that hold them.
pub struct VolumeLocalityFilter;

impl Filter for VolumeLocalityFilter {
    fn name(&self) -> &'static str {
        "VolumeLocalityFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.volume_hosts.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let at = ask.request.asks.volume_hosts.as_ref();
        at.is_none_or(|hosts| hosts.contains(host.name()))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = (host, ask);
        Miss::Unfit("does not reach a volume of the Server".to_owned())
    }
}
