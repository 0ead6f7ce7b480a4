//! Which filters and weighers are used, their multipliers and settings.

use crate::filters::{self, Filter, Settings};
use crate::weighers::{self, Weigher};
use pileus_api::scheduler_policy::{
    IsolatedHostsAccess, METRICS, PreemptionPolicy, SchedulerPolicySpec, Strategy, WaitingPolicy,
    multiplier as read,
};

/// Filters that are used only if a policy names them, as in Nova, because their defaults would
/// reject hosts unexpectedly.
const OPTIONAL: [&str; 3] = [
    "AggregateInstanceExtraSpecsFilter",
    "IoOpsFilter",
    "NumInstancesFilter",
];

/// Filters and weighers, with multipliers in thousandths.
pub struct Policy {
    pub(crate) filters: Vec<Box<dyn Filter>>,
    pub(crate) weighers: Vec<(Box<dyn Weigher>, i64)>,
    pub(crate) settings: Settings,
    /// Whether Servers of lower priority are stopped for others.
    pub(crate) preemption: PreemptionPolicy,
    /// Whether capacity is reserved for a Server that has waited long.
    pub(crate) waiting: WaitingPolicy,
}

/// Why a policy is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No such filter.
    #[error("spec.filters names `{0}`, which does not exist; known are {1}")]
    UnknownFilter(String, String),
    /// No such weigher.
    #[error("spec.weighers names `{0}`, which does not exist; known are {1}")]
    UnknownWeigher(String, String),
    /// No such metric.
    #[error("spec.metrics names `{0}`, which no Host reports; known are {1}")]
    UnknownMetric(String, String),
    /// Not a ratio.
    #[error("spec.metrics gives {0} the ratio {1}")]
    Ratio(String, String),
    /// Not a multiplier.
    #[error("spec.weighers gives {0} the multiplier {1}")]
    Multiplier(String, String),
}

impl Default for Policy {
    fn default() -> Self {
        let with = |w: Box<dyn Weigher>| {
            let multiplier = w.multiplier();
            (w, multiplier)
        };
        let mut filters = filters::all();
        filters.retain(|f| !OPTIONAL.contains(&f.name()));
        Self {
            filters,
            weighers: weighers::all().into_iter().map(with).collect(),
            settings: Settings::default(),
            preemption: PreemptionPolicy::default(),
            waiting: WaitingPolicy::default(),
        }
    }
}

impl Policy {
    /// The policy that `config` describes.
    ///
    /// # Errors
    /// If it names something that does not exist, or has an invalid multiplier or ratio.
    pub fn new(config: &SchedulerPolicySpec) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        if let Some(names) = &config.filters {
            let all = filters::all();
            let known = |n: &&String| !all.iter().any(|f| f.name() == n.as_str());
            if let Some(unknown) = names.iter().find(known) {
                let known: Vec<_> = all.iter().map(|f| f.name()).collect();
                return Err(PolicyError::UnknownFilter(
                    unknown.clone(),
                    known.join(", "),
                ));
            }
            policy.filters = all;
            policy
                .filters
                .retain(|f| names.iter().any(|n| n == f.name()));
        }
        for (name, text) in &config.weighers {
            let known: Vec<_> = policy.weighers.iter().map(|(w, _)| w.name()).collect();
            let Some((_, multiplier)) = policy.weighers.iter_mut().find(|(w, _)| w.name() == name)
            else {
                return Err(PolicyError::UnknownWeigher(name.clone(), known.join(", ")));
            };
            *multiplier =
                read(text).map_err(|wrong| PolicyError::Multiplier(name.clone(), wrong))?;
        }
        if config.strategy == Strategy::Pack {
            for (weigher, multiplier) in &mut policy.weighers {
                if ["RAMWeigher", "CPUWeigher", "DiskWeigher"].contains(&weigher.name()) {
                    *multiplier = -*multiplier;
                }
            }
        }
        policy.preemption = config.preemption;
        policy.waiting = config.waiting;
        let settings = &mut policy.settings;
        for (name, text) in &config.metrics {
            if !METRICS.contains(&name.as_str()) {
                return Err(PolicyError::UnknownMetric(name.clone(), METRICS.join(", ")));
            }
            let ratio = read(text).map_err(|wrong| PolicyError::Ratio(name.clone(), wrong))?;
            settings.metrics.insert(name.clone(), ratio);
        }
        if let Some(most) = config.max_io_ops_per_host {
            settings.max_io_ops_per_host = most;
        }
        if let Some(most) = config.max_instances_per_host {
            settings.max_instances_per_host = most;
        }
        settings.isolated_hosts.clone_from(&config.isolated_hosts);
        settings.isolated_images.clone_from(&config.isolated_images);
        settings.restrict_isolated_hosts =
            config.isolated_hosts_access == IsolatedHostsAccess::IsolatedImages;
        if let Some(zone) = &config.default_availability_zone {
            settings.default_zone.clone_from(zone);
        }
        Ok(policy)
    }

    /// A policy of one filter and no weigher, for benchmarks.
    #[must_use]
    pub fn only(filter: Box<dyn Filter>) -> Self {
        Self {
            filters: vec![filter],
            weighers: Vec::new(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_an_invalid_policy_names_what_is_known() {
        let read = |text: &str| serde_json::from_str::<SchedulerPolicySpec>(text).unwrap();
        let policy = Policy::new(&read(
            r#"{"filters": ["RamFilter", "ComputeFilter"], "weighers": {"CPUWeigher": "-1.5"},
                "strategy": "Pack"}"#,
        ))
        .unwrap();
        assert_eq!(policy.filters.len(), 2);
        let multiplier = |name: &str| {
            let mut weighers = policy.weighers.iter();
            weighers.find(|(w, _)| w.name() == name).unwrap().1
        };
        assert_eq!(
            (multiplier("CPUWeigher"), multiplier("RAMWeigher")),
            (1500, -1000)
        );
        let error = Policy::new(&read(r#"{"filters": ["RamFliter"]}"#))
            .err()
            .unwrap();
        assert!(error.to_string().contains("`RamFliter`"), "{error}");
        assert!(error.to_string().contains("RamFilter"), "{error}");
        let error = Policy::new(&read(r#"{"weighers": {"RAMWeigher": "much"}}"#));
        assert!(matches!(error, Err(PolicyError::Multiplier(..))));
        let error = Policy::new(&read(r#"{"metrics": {"cpu.heat": "1"}}"#));
        assert!(matches!(error, Err(PolicyError::UnknownMetric(..))));
        let error = Policy::new(&read(r#"{"metrics": {"cpu.percent": "little"}}"#));
        assert!(matches!(error, Err(PolicyError::Ratio(..))));
        let error = Policy::new(&read(r#"{"weighers": {"Ram": "1"}}"#));
        assert!(matches!(error, Err(PolicyError::UnknownWeigher(..))));
    }
}
