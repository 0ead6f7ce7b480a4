//! The host has the labels that the Server asks for.

use super::{Filter, HostState, Miss, Request};

/// `spec.placement.hostSelector`: every label of it, as a Pod's nodeSelector.
pub struct HostSelector;

impl Filter for HostSelector {
    fn name(&self) -> &'static str {
        "HostSelector"
    }

    fn passes(&self, host: &HostState, request: &Request) -> bool {
        let labels = &host.facts.labels;
        request
            .host_selector
            .iter()
            .all(|(k, v)| labels.get(k) == Some(v))
    }

    fn miss(&self, host: &HostState, request: &Request) -> Miss {
        let labels = &host.facts.labels;
        let missing: Vec<_> = request
            .host_selector
            .iter()
            .filter(|(k, v)| labels.get(*k) != Some(v))
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        Miss::Unfit(format!("is not labelled {}", missing.join(", ")))
    }
}
