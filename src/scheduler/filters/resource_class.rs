//! The host has the other resource classes left.

use super::{Ask, Filter, Host, Miss, Scope};
use pileus_api::common::given_out;

/// How much of `class` one Server that wants `amount` could have.
fn left(host: Host<'_>, class: &str, amount: i64) -> i64 {
    let Some(all) = host.profile().resources.get(class) else {
        return 0;
    };
    if !all.units.allow(amount) {
        return 0;
    }
    let used = host
        .extended()
        .and_then(|e| e.resources.get(class))
        .copied();
    given_out(all.total, all.reserved, all.ratio)
        .saturating_sub(used.unwrap_or_default())
        .min(all.total)
}

/// Placement's inventories: `resources:CLASS` of the flavor's extra specs.
pub struct ResourceClassFilter;

impl Filter for ResourceClassFilter {
    fn name(&self) -> &'static str {
        "ResourceClassFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.asks.shape.resources.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let wanted = &ask.request.asks.shape.resources;
        wanted.iter().all(|(class, n)| *n <= left(host, class, *n))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let wanted = &ask.request.asks.shape.resources;
        let lacking = wanted
            .iter()
            .find(|(class, n)| **n > left(host, class, **n));
        let (class, needs) = lacking.map_or(("", 0), |(c, n)| (c.as_str(), *n));
        let has = left(host, class, needs).max(0);
        Miss::Unfit(format!("has {has} of {class} for it, which needs {needs}"))
    }
}
