//! The host has enough of other resource classes.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use pileus_api::common::given_out;

/// How much of `class` is available to a Server that needs `amount`.
fn left(host: Host<'_>, class: &str, amount: i64) -> i64 {
    let Some(all) = host.profile().inventories.get(class) else {
        return 0;
    };
    if !all.units.allows(amount) {
        return 0;
    }
    let used = host
        .extended()
        .and_then(|e| e.classes.get(class))
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

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.requirements.resources.classes.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let wanted = &cycle.request.requirements.resources.classes;
        wanted.iter().all(|(class, n)| *n <= left(host, class, *n))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let wanted = &cycle.request.requirements.resources.classes;
        let lacking = wanted
            .iter()
            .find(|(class, n)| **n > left(host, class, **n));
        let (class, needs) = lacking.map_or(("", 0), |(c, n)| (c.as_str(), *n));
        let has = left(host, class, needs).max(0);
        RejectReason::Unsuitable(format!("has {has} of {class}, the Server needs {needs}"))
    }
}
