//! The host can do what the flavor's extra specs ask for.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::scheduler::operators::holds;

fn unmet<'a>(host: Host<'_>, ask: &Ask<'a>) -> Option<(&'a str, &'a str)> {
    let has = &host.profile().capabilities;
    ask.request
        .asks
        .extra_specs
        .iter()
        .find_map(|(key, wanted)| {
            let key = match key.strip_prefix("capabilities:") {
                Some(key) => key,
                None if has.contains_key(key) => key,
                None => return None,
            };
            let met = has.get(key).is_some_and(|has| holds(has, wanted));
            (!met).then_some((key, wanted.as_str()))
        })
}

/// Nova's `ComputeCapabilitiesFilter`: keys in the scope `capabilities`, and
/// keys without one that name a capability of the host.
pub struct ComputeCapabilitiesFilter;

impl Filter for ComputeCapabilitiesFilter {
    fn name(&self) -> &'static str {
        "ComputeCapabilitiesFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.asks.extra_specs.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        unmet(host, ask).is_none()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let (key, wanted) = unmet(host, ask).unwrap_or_default();
        let has = host.profile().capabilities.get(key);
        let has = has.map_or("no such capability", String::as_str);
        Miss::Unfit(format!("has not {key} {wanted} but {has}"))
    }
}
