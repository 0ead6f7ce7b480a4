//! The host has the capabilities of the flavor's extra specs.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::extra_spec_operators::{Scoped, first_unmet, satisfies};

fn lacking<'a>(host: Host<'_>, cycle: &CycleState<'a>) -> Option<(&'a str, &'a str)> {
    let capabilities = &host.profile().capabilities;
    let specs = &cycle.request.requirements.extra_specs;
    first_unmet(specs, "capabilities", |name, wanted, scoped| {
        match capabilities.get(name) {
            Some(has) => Some(satisfies(has, wanted)),
            None => (scoped == Scoped::Yes).then_some(false),
        }
    })
}

/// Nova's `ComputeCapabilitiesFilter`: keys with the scope `capabilities`, and keys
/// without scope that are a capability of the host.
pub struct ComputeCapabilitiesFilter;

impl Filter for ComputeCapabilitiesFilter {
    fn name(&self) -> &'static str {
        "ComputeCapabilitiesFilter"
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
        let (key, wanted) = lacking(host, cycle).unwrap_or_default();
        let has = host.profile().capabilities.get(key);
        let has = has.map_or("no such capability", String::as_str);
        RejectReason::Unsuitable(format!("has {has} for {key}, not {wanted}"))
    }
}
