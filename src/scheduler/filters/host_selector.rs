//! The host has the labels that the Server asks for.

use super::{Ask, Filter, Host, Miss, Scope};

/// `spec.placement.hostSelector`: every label of it, as a Pod's nodeSelector.
pub struct HostSelector;

impl Filter for HostSelector {
    fn name(&self) -> &'static str {
        "HostSelector"
    }

    fn scope(&self) -> Scope {
        Scope::Host
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.labels.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        let has = host.label_ids();
        ask.labels
            .iter()
            .all(|l| l.is_some_and(|l| has.contains(&l)))
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let wanted = &ask.request.asks.host_selector;
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(k, v)| host.label(k) != Some(v))
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        Miss::Unfit(format!("is not labelled {}", missing.join(", ")))
    }
}
