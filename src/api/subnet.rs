//! `Subnet`: a range of addresses in a Network, served by DHCP.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A range of addresses in a Network of the same namespace.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Subnet",
    plural = "subnets",
    category = "pileus",
    namespaced,
    status = "SubnetStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.cidr"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.gatewayIP"),
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
#[x_kube(validation = Rule::new("self.network == oldSelf.network").message(Message::Message("network cannot be changed: make a new Subnet".into())))]
#[x_kube(validation = Rule::new("self.cidr == oldSelf.cidr").message(Message::Message("cidr cannot be changed: make a new Subnet".into())))]
pub struct SubnetSpec {
    /// Name of the Network.
    #[schemars(length(min = 1, max = 253))]
    pub network: String,
    /// The range, such as `10.0.0.0/24` or `fd00:1::/64`, with no host bits set.
    #[schemars(length(min = 3, max = 64))]
    pub cidr: String,
    /// Address of the gateway; the first of the range when absent, none when empty.
    #[serde(default, rename = "gatewayIP", skip_serializing_if = "Option::is_none")]
    pub gateway_ip: Option<String>,
    /// Where addresses are taken from, the one of DHCP and metadata among them; the whole range
    /// less the gateway when empty. What is outside of the pools is given only to Ports that ask
    /// for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub allocation_pools: Vec<AllocationPool>,
    /// Name servers given to guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_servers: Vec<String>,
    /// Further routes given to guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub host_routes: Vec<HostRoute>,
    /// Whether OVN answers DHCP here.
    #[serde(default)]
    pub dhcp: Dhcp,
}

/// Whether OVN answers DHCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Dhcp {
    /// Guests get their addresses by DHCP (DHCPv6 in IPv6).
    #[default]
    Enabled,
    /// Guests learn their addresses from the config drive alone.
    Disabled,
}

/// An inclusive range of addresses to hand out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllocationPool {
    /// Name of the pool within the subnet.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// First address.
    pub start: String,
    /// Last address.
    pub end: String,
}

/// A route given to guests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostRoute {
    /// Name of the route within the subnet.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Destination as a CIDR.
    pub destination: String,
    /// Address that the packets go to.
    #[serde(rename = "nextHop")]
    pub next_hop: String,
}

/// What the manager found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubnetStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// uid of the Network.
    #[serde(
        default,
        rename = "networkUID",
        skip_serializing_if = "Option::is_none"
    )]
    pub network_uid: Option<String>,
    /// Address of the gateway, if there is one.
    #[serde(default, rename = "gatewayIP", skip_serializing_if = "Option::is_none")]
    pub gateway_ip: Option<String>,
    /// Address that DHCP and metadata are served from: the last of the pools that is free when
    /// the subnet is made.
    #[serde(default, rename = "serviceIP", skip_serializing_if = "Option::is_none")]
    pub service_ip: Option<String>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
