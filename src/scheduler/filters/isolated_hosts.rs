//! Isolated images go to isolated hosts.

use super::{Ask, Filter, Host, Miss, Scope};

/// Nova's `IsolatedHostsFilter`: isolated images go to isolated hosts alone, and with
/// `restrict_isolated_hosts` nothing else goes there.
pub struct IsolatedHostsFilter;

impl Filter for IsolatedHostsFilter {
    fn name(&self) -> &'static str {
        "IsolatedHostsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !(ask.settings.isolated_hosts.is_empty() && ask.settings.isolated_images.is_empty())
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let host_is = ask.settings.isolated_hosts.contains(host.name());
        let image_is = ask
            .settings
            .isolated_images
            .contains(&ask.request.asks.image);
        if ask.settings.restrict_isolated_hosts {
            host_is == image_is
        } else {
            host_is || !image_is
        }
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let host_is = ask.settings.isolated_hosts.contains(host.name());
        Miss::Unfit(if host_is {
            format!(
                "is kept for isolated images, and {} is none",
                ask.request.asks.image
            )
        } else {
            format!(
                "is not isolated, and the image {} is",
                ask.request.asks.image
            )
        })
    }
}
