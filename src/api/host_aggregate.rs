//! `HostAggregate`: Hosts that have something in common, as in Nova.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::scheduler_policy::multiplier;

/// Hosts that have something in common: an availability zone, properties that flavors and
/// images ask for, the namespaces that they are kept for. Cluster-scoped, made by
/// administrators; a Host may be in several.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "HostAggregate",
    plural = "hostaggregates",
    category = "pileus",
    status = "HostAggregateStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.availabilityZone"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.hosts"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HostAggregateSpec {
    /// Labels of the Hosts in it, every one of them; none by label when empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_selector: BTreeMap<String, String>,
    /// Names of further Hosts in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10_000))]
    pub hosts: Vec<String>,
    /// Availability zone of its Hosts. A Host is in one zone: the oldest aggregate that
    /// names one decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub availability_zone: Option<String>,
    /// What flavors and images ask for: Nova's metadata of an aggregate, such as
    /// `ssd: "true"`. Nova's keys such as `cpu_weight_multiplier` give its Hosts multipliers
    /// of their own, in place of the SchedulerPolicy's; of several the lowest counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Namespaces that its Hosts are kept for; Nova's `filter_tenant_id`. All when empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 10_000))]
    pub namespaces: BTreeSet<String>,
    /// How often each processor may be given out on Hosts that do not say themselves, such
    /// as `4` or `1.5`; the lowest of a Host's aggregates counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_allocation_ratio: Option<String>,
    /// How often memory may be given out on Hosts that do not say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_allocation_ratio: Option<String>,
    /// How often disk may be given out on Hosts that do not say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_allocation_ratio: Option<String>,
}

/// What the scheduler found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostAggregateStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of Hosts in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<i64>,
    /// Conditions: Ready, by the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl HostAggregateSpec {
    /// Multipliers of weighers that it gives its Hosts, in thousandths, by Nova's key; or
    /// what is wrong with one.
    pub fn multipliers(&self) -> impl Iterator<Item = (&str, Result<i64, String>)> {
        let some = self.properties.iter();
        let some = some.filter(|(key, _)| key.ends_with("_weight_multiplier"));
        some.map(|(key, text)| (key.as_str(), multiplier(text)))
    }

    /// Whether a Host of this name and with these labels is in it.
    #[must_use]
    pub fn holds(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.host_selector.iter();
        let selected =
            !self.host_selector.is_empty() && wanted.all(|(k, v)| labels.get(k) == Some(v));
        selected || self.hosts.iter().any(|h| h == name)
    }
}
