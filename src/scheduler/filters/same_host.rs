//! The host holds one of the Servers named.

use super::{Ask, Filter, Host, Miss, Scope, names};

/// Nova's `SameHostFilter`.
pub struct SameHostFilter;

impl Filter for SameHostFilter {
    fn name(&self) -> &'static str {
        "SameHostFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.same.is_empty() || !ask.request.same_host.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        u32::try_from(host.slot()).is_ok_and(|slot| ask.same.contains(&slot))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let _ = host;
        Miss::Unfit(format!("holds none of {}", names(&ask.request.same_host)))
    }
}
