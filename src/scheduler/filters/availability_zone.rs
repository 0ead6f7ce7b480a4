//! The host is in the requested availability zone.

use super::{CycleState, Filter, Host, RejectReason, Scope};

fn zone<'a>(host: Host<'a>, cycle: &'a CycleState<'_>) -> &'a str {
    let zone = host.profile().zone.as_deref();
    zone.unwrap_or(&cycle.settings.default_zone)
}

/// Nova's `AvailabilityZoneFilter`: hosts without zone are in the default one.
pub struct AvailabilityZoneFilter;

impl Filter for AvailabilityZoneFilter {
    fn name(&self) -> &'static str {
        "AvailabilityZoneFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.zone.is_some()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        cycle.request.requirements.zone.as_deref() == Some(zone(host, cycle))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        RejectReason::Unsuitable(format!(
            "is in zone {}, not {}",
            zone(host, cycle),
            cycle.request.requirements.zone.as_deref().unwrap_or_default()
        ))
    }
}
