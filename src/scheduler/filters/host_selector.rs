//! The host has the labels of the Server's `hostSelector`.

use super::{CycleState, Filter, Host, RejectReason, Scope};

/// `spec.placement.hostSelector`: all labels must match, as in a Pod's nodeSelector.
pub struct HostSelector;

impl Filter for HostSelector {
    fn name(&self) -> &'static str {
        "HostSelector"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.labels.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        let has = host.label_ids();
        cycle.labels
            .iter()
            .all(|l| l.is_some_and(|l| has.contains(&l)))
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let wanted = &cycle.request.requirements.host_selector;
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(k, v)| host.label(k) != Some(v))
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        RejectReason::Unsuitable(format!("is not labelled {}", missing.join(", ")))
    }
}
