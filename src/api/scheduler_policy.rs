//! `SchedulerPolicy`: what the scheduler decides by.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use pileus_values::parse_signed_milli;

/// Largest multiplier, in thousandths: what keeps the sum of all within 64 bits.
const MOST_MULTIPLIER: i64 = 1_000_000_000;

/// Reads a weigher's multiplier, into thousandths.
///
/// # Errors
/// When it is no number or too big; says so.
pub fn multiplier(text: &str) -> Result<i64, String> {
    let read = parse_signed_milli(text).ok();
    let within = read.filter(|m| m.abs() <= MOST_MULTIPLIER);
    within.ok_or_else(|| format!("`{text}`, which is no number within ±1000000"))
}

/// The metrics that Hosts can report, by Nova's names.
pub const METRICS: [&str; 5] = [
    "cpu.idle.percent",
    "cpu.iowait.percent",
    "cpu.kernel.percent",
    "cpu.percent",
    "cpu.user.percent",
];

/// Name of the one SchedulerPolicy that counts.
pub const SCHEDULER_POLICY: &str = "default";

/// What the scheduler decides by: filters, weighers and their figures. Cluster-scoped; the
/// one named `default` counts, from the moment that it changes. Without it Nova's own
/// figures hold, but that a ServerGroup with a soft policy outweighs free room: its weighers
/// have the multiplier 1000.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "SchedulerPolicy",
    plural = "schedulerpolicies",
    category = "pileus",
    status = "SchedulerPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Strategy", type_ = "string", json_path = ".spec.strategy"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerPolicySpec {
    /// Names of the filters, in any order; Nova's `enabled_filters`. When absent all but
    /// AggregateInstanceExtraSpecsFilter, IoOpsFilter and NumInstancesFilter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub filters: Option<Vec<String>>,
    /// Multipliers by the weighers' names, such as `RAMWeigher: "-1.5"`; Nova's own for
    /// those that are not named, but 1000 for ServerGroupSoftAffinityWeigher and
    /// ServerGroupSoftAntiAffinityWeigher.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weighers: BTreeMap<String, String>,
    /// Whether free room attracts (Spread) or repels (Pack): Pack turns the multipliers of
    /// RAMWeigher, CPUWeigher and DiskWeigher around.
    #[serde(default)]
    pub strategy: Strategy,
    /// What MetricsWeigher adds up of each Host: ratios by metric, such as
    /// `cpu.percent: "-1.0"` for those that do least; Nova's `weight_setting`. A Host that
    /// does not report all of them comes last. Hosts measure nothing that is not named here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, String>,
    /// How many Servers a Host may be building or moving before IoOpsFilter turns it away;
    /// Nova's `max_io_ops_per_host`, 8 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_io_ops_per_host: Option<i64>,
    /// How many Servers a Host may hold before NumInstancesFilter turns it away; Nova's
    /// `max_instances_per_host`, 50 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_instances_per_host: Option<i64>,
    /// Hosts for isolated images, see IsolatedHostsFilter.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 10_000))]
    pub isolated_hosts: BTreeSet<String>,
    /// Images that go to isolated Hosts alone, as `namespace/name`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 10_000))]
    pub isolated_images: BTreeSet<String>,
    /// Who may use isolated Hosts beside the isolated images.
    #[serde(default)]
    pub isolated_hosts_access: IsolatedHostsAccess,
    /// Availability zone of Hosts that are in none; Nova's
    /// `default_availability_zone`, `nova` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub default_availability_zone: Option<String>,
    /// Whether Servers of lower priority are stopped for one that fits nowhere.
    #[serde(default)]
    pub preemption: PreemptionPolicy,
    /// Whether what others free is kept for a Server that has waited long.
    #[serde(default)]
    pub waiting: WaitingPolicy,
}

/// Whether Servers are stopped for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PreemptionPolicy {
    /// No Server is ever stopped for another.
    #[default]
    Never,
    /// Where a Server fits nowhere, as few as possible of lower priority are stopped on one
    /// Host, of all Hosts the one where the least important suffer. They keep Host, disk and
    /// addresses, say so in `status.preemption`, and are started again when there is room.
    /// A Server whose PriorityClass has the `preemptionPolicy` Never stops nobody.
    LowerPriority,
}

/// What is done for a Server that waits long for room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WaitingPolicy {
    /// One at a time, a Server that has waited for five minutes has what is free on the Host
    /// that comes nearest kept for it, for ten minutes: so that a big one is not passed by
    /// small ones for ever.
    #[default]
    KeepRoom,
    /// Room goes to whoever fits.
    FirstFit,
}

/// What free room does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// The emptiest Host is best.
    #[default]
    Spread,
    /// The fullest Host is best.
    Pack,
}

/// Who may use isolated Hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IsolatedHostsAccess {
    /// Isolated images alone: Nova's `restrict_isolated_hosts_to_isolated_images`.
    #[default]
    IsolatedImages,
    /// Every image.
    AnyImage,
}

/// What the scheduler found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerPolicyStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, by the scheduler; False when the policy cannot be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
