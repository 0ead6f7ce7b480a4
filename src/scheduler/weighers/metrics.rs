//! Prefers hosts by what they measure of themselves.

use super::{Ask, Figures, Weigher};

/// Nova's `MetricsWeigher`, `weight_setting`: the sum of metrics by the policy's ratios.
pub struct MetricsWeigher;

impl Weigher for MetricsWeigher {
    fn name(&self) -> &'static str {
        "MetricsWeigher"
    }

    fn aggregate_key(&self) -> Option<&'static str> {
        Some("metrics_weight_multiplier")
    }

    fn weigh<'a>(&self, ask: &Ask<'a>) -> Figures<'a> {
        let ratios = &ask.settings.metrics;
        if ratios.is_empty() || ask.snapshot.metrics().is_empty() {
            return Figures::Same;
        }
        let sum = |metrics: &std::collections::BTreeMap<String, i64>| {
            let parts = ratios.iter().map(|(name, ratio)| {
                let figure = metrics.get(name).copied().unwrap_or_default();
                i128::from(figure) * i128::from(*ratio) / 1000
            });
            let sum: i128 = parts.sum();
            let (least, most) = (i128::from(i32::MIN), i128::from(i32::MAX));
            i32::try_from(sum.clamp(least, most)).unwrap_or_default()
        };
        let hosts = ask.snapshot.metrics().iter();
        let mut figures: Vec<_> = hosts.map(|(slot, m)| (*slot, sum(m))).collect();
        figures.sort_unstable();
        Figures::Some(figures)
    }
}
