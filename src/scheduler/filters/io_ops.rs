//! The host is not too busy.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `IoOpsFilter`: fewer than `max_io_ops_per_host` Servers are being built, moved
/// or resized.
pub struct IoOpsFilter;

impl Filter for IoOpsFilter {
    fn name(&self) -> &'static str {
        "IoOpsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        host.busy() < ask.settings.max_io_ops_per_host
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let most = ask.settings.max_io_ops_per_host;
        Miss::Unfit(format!(
            "is busy with {} Servers of at most {most}",
            host.busy()
        ))
    }
}
