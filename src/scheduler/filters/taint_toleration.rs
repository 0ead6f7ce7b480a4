//! The Server tolerates the host's taints.

use super::{CycleState, Filter, Host, RejectReason, Scope};
use crate::placement::facts::Taint;
use crate::placement::request::Requirements;

/// Whether a Server tolerates a taint.
#[must_use]
pub fn tolerates(requirements: &Requirements, taint: &Taint) -> bool {
    let same = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
    requirements.tolerations.iter().any(|t| {
        same(&t.key, &taint.key) && same(&t.value, &taint.value) && same(&t.effect, &taint.effect)
    })
}

fn untolerated<'a>(host: Host<'a>, cycle: &CycleState<'_>) -> Option<&'a Taint> {
    let mut taints = host.profile().taints.iter();
    taints.find(|t| t.effect != "PreferNoSchedule" && !tolerates(&cycle.request.requirements, t))
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

    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool {
        untolerated(host, cycle).is_none()
    }

    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason {
        let taint = untolerated(host, cycle);
        let taint = taint.map(|t| format!("{}={}:{}", t.key, t.value, t.effect));
        RejectReason::Unsuitable(format!("has the taint {}", taint.unwrap_or_default()))
    }
}
