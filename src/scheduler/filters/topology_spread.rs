//! The host's domains have not too many Servers of the spread set.

use super::{CycleState, Filter, Host, RejectReason, Scope};

fn violated<'a>(host: Host<'_>, cycle: &CycleState<'a>) -> Option<&'a str> {
    let constraints = cycle.request.spread.iter().zip(&cycle.domains);
    constraints
        .into_iter()
        .find_map(|(spread, domains)| {
            let mut labels = host.label_ids().iter();
            let here = labels.find_map(|id| domains.counts[*id as usize]);
            let met = here.is_some_and(|n| n < domains.least + spread.max_skew.max(1));
            (!met).then_some(spread.key.as_str())
        })
}

/// Kubernetes' `PodTopologySpread` with `DoNotSchedule`: a domain has at most
/// `maxSkew` more Servers than the emptiest one.
pub struct TopologySpread;

impl Filter for TopologySpread {
    fn name(&self) -> &'static str {
        "TopologySpread"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, cycle: &CycleState<'_>) -> bool {
        !cycle.request.spread.is_empty()
    }

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        violated(host, cycle).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let key = violated(host, cycle).unwrap_or_default();
        RejectReason::Unsuitable(match host.label(key) {
            Some(domain) => format!("is in {key}={domain}, which has too many Servers of the set already"),
            None => format!("has no label {key}"),
        })
    }
}
