//! The host's aggregates allow the image.

use super::{CycleState, Filter, Host, RejectReason, Scope};

fn unmet<'a>(host: Host<'_>, cycle: &CycleState<'a>) -> Option<(&'a str, &'a str)> {
    let aggregates = &host.profile().aggregates;
    let mut image = cycle.request.requirements.image_properties.iter();
    image.find_map(|(name, value)| {
        let allowed: Vec<_> = aggregates
            .iter()
            .filter_map(|a| a.properties.get(name))
            .collect();
        let met = allowed.is_empty()
            || allowed
                .iter()
                .any(|a| a.split(',').any(|a| a.trim() == value));
        (!met).then_some((name.as_str(), value.as_str()))
    })
}

/// Nova's `AggregateImagePropertiesIsolation`: if an aggregate has a property of the image,
/// the image's value must be among the aggregate's values.
pub struct AggregateImagePropertiesIsolation;

impl Filter for AggregateImagePropertiesIsolation {
    fn name(&self) -> &'static str {
        "AggregateImagePropertiesIsolation"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        unmet(host, cycle).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let (name, value) = unmet(host, cycle).unwrap_or_default();
        RejectReason::Unsuitable(format!(
            "is reserved for images with other values of {name} than {value}"
        ))
    }
}
