//! The host holds none of the Servers named.

use super::{Ask, Filter, Host, Miss, Scope, names};

/// Nova's `DifferentHostFilter`.
pub struct DifferentHostFilter;

impl Filter for DifferentHostFilter {
    fn name(&self) -> &'static str {
        "DifferentHostFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.different.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        u32::try_from(host.slot()).is_ok_and(|slot| !ask.different.contains(&slot))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = host;
        Miss::Unfit(format!(
            "holds one of {}",
            names(&ask.request.different_host)
        ))
    }
}
