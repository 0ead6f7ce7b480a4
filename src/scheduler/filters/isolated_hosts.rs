//! Isolated images go to isolated hosts.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// Nova's `IsolatedHostsFilter`: isolated images only on isolated hosts, and with
/// `restrict_isolated_hosts` no other images there.
pub struct IsolatedHostsFilter;

impl Filter for IsolatedHostsFilter {
    fn name(&self) -> &'static str {
        "IsolatedHostsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !(cycle.settings.isolated_hosts.is_empty() && cycle.settings.isolated_images.is_empty())
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let host_is = cycle.settings.isolated_hosts.contains(host.name());
        let image_is = cycle
            .settings
            .isolated_images
            .contains(&cycle.request.requirements.image);
        if cycle.settings.restrict_isolated_hosts {
            host_is == image_is
        } else {
            host_is || !image_is
        }
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let host_is = cycle.settings.isolated_hosts.contains(host.name());
        RejectReason::Unsuitable(if host_is {
            format!(
                "is reserved for isolated images, and {} is not isolated",
                cycle.request.requirements.image
            )
        } else {
            format!(
                "is not an isolated host, and the image {} is isolated",
                cycle.request.requirements.image
            )
        })
    }
}
