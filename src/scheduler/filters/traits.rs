//! The host has the traits required and none forbidden.

use super::{Ask, Filter, Host, Miss, Scope};

fn unmet<'a>(host: Host<'_>, ask: &Ask<'a>) -> Option<(&'a str, &'a str)> {
    let asks = &ask.request.asks;
    let mut wanted = asks.extra_specs.iter().chain(&asks.image_properties);
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

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        unmet(host, ask).is_none()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let (name, wanted) = unmet(host, ask).unwrap_or_default();
        let has = if wanted == "required" {
            "has not"
        } else {
            "has"
        };
        Miss::Unfit(format!("{has} the trait {name}, which is {wanted}"))
    }
}
