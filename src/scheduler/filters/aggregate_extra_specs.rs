//! An aggregate of the host has the properties of the flavor's extra specs.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::extra_spec_operators::{first_unmet, satisfies};

fn lacking<'a>(host: Host<'_>, cycle: &CycleState<'a>) -> Option<(&'a str, &'a str)> {
    let aggregates = &host.profile().aggregates;
    let specs = &cycle.request.requirements.extra_specs;
    first_unmet(specs, "aggregate_instance_extra_specs", |name, wanted, _| {
        let mut values = aggregates
            .iter()
            .filter_map(|a| a.properties.get(name))
            .flat_map(|text| text.split(','));
        Some(values.any(|has| satisfies(has.trim(), wanted)))
    })
}

/// Nova's `AggregateInstanceExtraSpecsFilter`: keys with the scope
/// `aggregate_instance_extra_specs` or without scope.
pub struct AggregateInstanceExtraSpecsFilter;

impl Filter for AggregateInstanceExtraSpecsFilter {
    fn name(&self) -> &'static str {
        "AggregateInstanceExtraSpecsFilter"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.requirements.extra_specs.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        lacking(host, cycle).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let (key, value) = lacking(host, cycle).unwrap_or_default();
        RejectReason::Unsuitable(format!("is in no aggregate with {key}={value}"))
    }
}
