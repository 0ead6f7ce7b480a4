//! `SecurityGroup` and `SecurityGroupRule`: who may talk to whom, as in Neutron.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of rules for the Ports that name it. Stateful; what no rule allows is dropped.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "SecurityGroup",
    plural = "securitygroups",
    shortname = "sg",
    category = "pileus",
    namespaced,
    status = "SecurityGroupStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Rules", type_ = "integer", json_path = ".status.rules"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
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
pub struct SecurityGroupSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub description: Option<String>,
    /// The group's rules; everything out and nothing in when absent, as a new group in
    /// Neutron. Rules of its own can be added as `SecurityGroupRule`s.
    #[serde(default = "egress_open")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 256))]
    pub rules: Vec<NamedRule>,
}

fn egress_open() -> Vec<NamedRule> {
    [
        ("egress-ipv4", EtherType::IPv4),
        ("egress-ipv6", EtherType::IPv6),
    ]
    .map(|(name, ether_type)| NamedRule {
        name: name.to_owned(),
        rule: SecurityRule {
            direction: Direction::Egress,
            ether_type,
            ..SecurityRule::default()
        },
    })
    .to_vec()
}

/// A rule with its name within the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamedRule {
    /// Name within the group.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it allows.
    #[serde(flatten)]
    pub rule: SecurityRule,
}

/// What a rule allows; Neutron's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityRule {
    /// Seen from the guest.
    #[serde(default)]
    pub direction: Direction,
    /// Family of addresses.
    #[serde(default)]
    pub ether_type: EtherType,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, another of Neutron's names, or a number from
    /// 0 to 255; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// First port, or the type for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub port_range_min: Option<i32>,
    /// Last port, or the code for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub port_range_max: Option<i32>,
    /// Other side by address; any when absent.
    #[serde(
        default,
        rename = "remoteCIDR",
        skip_serializing_if = "Option::is_none"
    )]
    pub remote_cidr: Option<String>,
    /// Other side by membership in a group of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_group: Option<String>,
}

/// Direction as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Direction {
    /// To the guest.
    #[default]
    Ingress,
    /// From the guest.
    Egress,
}

/// Family of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EtherType {
    /// IPv4.
    #[default]
    IPv4,
    /// IPv6.
    IPv6,
}

/// What the manager found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of rules in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<i64>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A rule added to a SecurityGroup of the same namespace.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "SecurityGroupRule",
    plural = "securitygrouprules",
    shortname = "sgr",
    category = "pileus",
    namespaced,
    status = "SecurityGroupRuleStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Group", type_ = "string", json_path = ".spec.securityGroup"),
    printcolumn(name = "Direction", type_ = "string", json_path = ".spec.direction"),
    printcolumn(name = "Protocol", type_ = "string", json_path = ".spec.protocol"),
    printcolumn(name = "From", type_ = "integer", json_path = ".spec.portRangeMin"),
    printcolumn(name = "To", type_ = "integer", json_path = ".spec.portRangeMax"),
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
pub struct SecurityGroupRuleSpec {
    /// Name of the SecurityGroup.
    #[schemars(length(min = 1, max = 253))]
    pub security_group: String,
    /// What it allows.
    #[serde(flatten)]
    pub rule: SecurityRule,
}

/// What the manager found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupRuleStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
