//! `ServerGroup`: Servers that are placed with an eye to each other, as in Nova.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Servers that are placed with an eye to each other. A Server joins with
/// `spec.placement.serverGroup`.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "ServerGroup",
    plural = "servergroups",
    category = "pileus",
    namespaced,
    status = "ServerGroupStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policy"),
    printcolumn(name = "MinMembers", type_ = "integer", json_path = ".spec.minMembers"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxServersPerHost) || self.policy == 'AntiAffinity'").message(Message::Message("maxServersPerHost belongs to policy AntiAffinity".into())))]
#[x_kube(validation = Rule::new("self.policy == oldSelf.policy").message(Message::Message("the policy of a ServerGroup cannot be changed, because Servers were placed by it: make a new one".into())))]
pub struct ServerGroupSpec {
    /// How members are placed.
    pub policy: GroupPolicy,
    /// How many members one Host may hold; only with AntiAffinity, 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_servers_per_host: Option<i32>,
    /// All or nothing: members are placed only once this many can be, together with those
    /// that are already; each for itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 1000))]
    pub min_members: Option<i32>,
}

/// How members of a ServerGroup are placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum GroupPolicy {
    /// All on one Host.
    Affinity,
    /// Each on another Host.
    #[default]
    AntiAffinity,
    /// On one Host where possible.
    SoftAffinity,
    /// On different Hosts where possible.
    SoftAntiAffinity,
}

/// What the scheduler found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerGroupStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, by the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
