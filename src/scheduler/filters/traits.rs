//! The host has the required traits and none of the forbidden ones.

use super::{CycleState, Filter, Host, RejectReason, Scope};

fn unmet<'a>(host: Host<'_>, cycle: &CycleState<'a>) -> Option<(&'a str, &'a str)> {
    let requirements = &cycle.request.requirements;
    let mut wanted = requirements.extra_specs.iter().chain(&requirements.image_properties);
    wanted.find_map(|(key, wanted)| {
        let name = key.strip_prefix("trait:")?;
        let has = host.profile().traits.contains(name);
        let met = match wanted.as_str() {
            "required" => has,
            "forbidden" => !has,
            _ => true,
        };
        (!met).then_some((name, wanted.as_str()))
    })
}

/// Placement's traits: `trait:NAME=required` or `forbidden`, of flavor and image.
pub struct TraitFilter;

impl Filter for TraitFilter {
    fn name(&self) -> &'static str {
        "TraitFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        unmet(host, cycle).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let (name, wanted) = unmet(host, cycle).unwrap_or_default();
        let has = if wanted == "required" {
            "does not have"
        } else {
            "has"
        };
        RejectReason::Unsuitable(format!("{has} the trait {name}, which is {wanted}"))
    }
}
