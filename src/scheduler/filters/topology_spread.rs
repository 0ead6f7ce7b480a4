//! The host's domains hold not too many of the Servers spread.

use super::{Ask, Filter, Host, Miss, Scope};

fn uneven<'a>(host: Host<'_>, ask: &Ask<'a>) -> Option<&'a str> {
    let constraints = ask.request.spread.iter().zip(&ask.domains);
    constraints
        .into_iter()
        .find_map(|(spread, domains)| {
            let mut labels = host.label_ids().iter();
            let here = labels.find_map(|id| domains.counts[*id as usize]);
            let met = here.is_some_and(|n| n < domains.least + spread.max_skew.max(1));
            (!met).then_some(spread.key.as_str())
        })
}

/// Kubernetes' `PodTopologySpread` with `DoNotSchedule`: a domain holds at most
/// `maxSkew` more than the emptiest.
pub struct TopologySpread;

impl Filter for TopologySpread {
    fn name(&self) -> &'static str {
        "TopologySpread"
    }

    fn scope(&self) -> Scope {
        Scope::Request
    }

    fn applies(&self, ask: &Ask<'_>) -> bool {
        !ask.request.spread.is_empty()
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        uneven(host, ask).is_none()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let key = uneven(host, ask).unwrap_or_default();
        Miss::Unfit(match host.label(key) {
            Some(domain) => format!("is in {key}={domain}, which holds too many already"),
            None => format!("has no label {key}"),
        })
    }
}
