//! Prefers hosts by their metrics.

use super::{CycleState, RawWeights, Weigher};

/// The advantage of a host that reports all metrics over one that does not: Nova's
/// `weight_of_unavailable` of -10000, in thousandths.
const ABOVE_UNAVAILABLE: i128 = 10_000_000;

/// Nova's `MetricsWeigher`, `weight_setting`: the sum of metrics by the policy's ratios.
pub struct MetricsWeigher;

impl Weigher for MetricsWeigher {
    fn name(&self) -> &'static str {
        "MetricsWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("metrics_weight_multiplier")
    }

    fn weigh<'a>(&self, cycle: &CycleState<'a>) -> RawWeights<'a> {
        let ratios = &cycle.settings.metrics;
        if ratios.is_empty() || cycle.snapshot.metrics().is_empty() {
            return RawWeights::Equal;
        }
        let sum = |metrics: &std::collections::BTreeMap<String, i64>| {
            let parts = ratios.iter().map(|(name, ratio)| {
                let weight = metrics.get(name).copied();
                Some(i128::from(weight?) * i128::from(*ratio) / 1000)
            });
            let sum: i128 = parts.sum::<Option<i128>>()?;
            let most = i128::from(i32::MAX);
            i32::try_from((ABOVE_UNAVAILABLE + sum).clamp(0, most)).ok()
        };
        let hosts = cycle.snapshot.metrics().iter();
        let mut weights: Vec<_> = hosts.filter_map(|(slot, m)| Some((*slot, sum(m)?))).collect();
        weights.sort_unstable();
        RawWeights::Sparse(weights)
    }
}
