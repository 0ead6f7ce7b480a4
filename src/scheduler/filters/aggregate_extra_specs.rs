//! An aggregate of the host has what the flavor's extra specs ask for.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::placement::extra_spec_operators::{holds, unmet};

fn lacking<'a>(host: Host<'_>, ask: &Ask<'a>) -> Option<(&'a str, &'a str)> {
    let aggregates = &host.profile().aggregates;
    let specs = &ask.request.asks.extra_specs;
    unmet(specs, "aggregate_instance_extra_specs", |name, wanted, _| {
        let mut values = aggregates
            .iter()
            .filter_map(|a| a.properties.get(name))
            .flat_map(|text| text.split(','));
        Some(values.any(|has| holds(has.trim(), wanted)))
    })
}

/// Nova's `AggregateInstanceExtraSpecsFilter`: keys in the scope
/// `aggregate_instance_extra_specs` or in none.
pub struct AggregateInstanceExtraSpecsFilter;

impl Filter for AggregateInstanceExtraSpecsFilter {
    fn name(&self) -> &'static str {
        "AggregateInstanceExtraSpecsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.asks.extra_specs.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        lacking(host, ask).is_none()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let (key, value) = lacking(host, ask).unwrap_or_default();
        Miss::Unfit(format!("is in no aggregate with {key}={value}"))
    }
}
