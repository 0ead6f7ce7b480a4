//! The host is in the zone.

use super::{Ask, Filter, Host, Miss, Scope};

fn zone<'a>(host: Host<'a>, ask: &'a Ask<'_>) -> &'a str {
    let zone = host.profile().zone.as_deref();
    zone.unwrap_or(&ask.settings.default_zone)
}

/// Nova's `AvailabilityZoneFilter`: hosts in no zone are in the default one.
pub struct AvailabilityZoneFilter;

impl Filter for AvailabilityZoneFilter {
    fn name(&self) -> &'static str {
        "AvailabilityZoneFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        ask.request.asks.zone.is_some()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        ask.request.asks.zone.as_deref() == Some(zone(host, ask))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        Miss::Unfit(format!(
            "is in zone {}, not {}",
            zone(host, ask),
            ask.request.asks.zone.as_deref().unwrap_or_default()
        ))
    }
}
