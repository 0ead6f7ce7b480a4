//! The Server puts up with the host's taints.

use super::{Ask, Filter, Host, Miss, Scope};
use crate::placement::facts::Taint;
use crate::placement::request::Asks;

/// Whether a Server puts up with a taint.
#[must_use]
pub fn tolerates(asks: &Asks, taint: &Taint) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
    asks.tolerations.iter().any(|t| {
        same(&t.key, &taint.key) && same(&t.value, &taint.value) && same(&t.effect, &taint.effect)
    })
}

fn untolerated<'a>(host: Host<'a>, ask: &Ask<'_>) -> Option<&'a Taint> {
    let mut taints = host.profile().taints.iter();
    taints.find(|t| t.effect != "PreferNoSchedule" && !tolerates(&ask.request.asks, t))
}

/// Kubernetes' `TaintToleration`: NoSchedule and NoExecute taints need a toleration.
pub struct TaintToleration;

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn scope(&self) -> Scope {
        Scope::Profile
    }

    fn passes(&self, host: Host<'_>, ask: &Ask<'_>) -> bool {
        untolerated(host, ask).is_none()
    }

    fn miss(&self, host: Host<'_>, ask: &Ask<'_>) -> Miss {
        let taint = untolerated(host, ask);
        let taint = taint.map(|t| format!("{}={}:{}", t.key, t.value, t.effect));
        Miss::Unfit(format!("has the taint {}", taint.unwrap_or_default()))
    }
}
