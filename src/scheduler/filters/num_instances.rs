//! The host holds not too many Servers.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `NumInstancesFilter`: fewer than `max_instances_per_host`.
pub struct NumInstancesFilter;

impl Filter for NumInstancesFilter {
    fn name(&self) -> &'static str {
        "NumInstancesFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        host.servers() < ask.settings.max_instances_per_host
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let most = ask.settings.max_instances_per_host;
        Miss::Unfit(format!(
            "holds {} Servers of at most {most}",
            host.servers()
        ))
    }
}
