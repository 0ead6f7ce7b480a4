//! `Network`: one broadcast domain, an OVN logical switch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Sharing;

/// A network of a tenant, carried over the hosts by tunnels.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Network",
    plural = "networks",
    shortname = "net",
    category = "pileus",
    namespaced,
    status = "NetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.mtu"),
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
pub struct NetworkSpec {
    /// Largest packet of a guest in bytes; what the underlay carries less the tunnel's
    /// overhead when absent. A bigger value than that is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<i32>,
    /// Whether ports are held to their own addresses and to security groups, unless a
    /// Port says otherwise.
    #[serde(default)]
    pub port_security: PortSecurity,
    /// Other namespaces that may attach Ports. Theirs have port security, and neither MAC nor
    /// addresses of their choice; they are unplugged once their namespace is not listed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_with: Option<Sharing>,
}

/// Whether a port is held to its own addresses and to security groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PortSecurity {
    /// Spoofed MAC, IP and ARP are dropped, security groups are enforced.
    #[default]
    Enabled,
    /// Everything passes; security groups cannot be given.
    Disabled,
}

/// What the manager found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Largest packet of a guest in bytes, fixed when the network was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// Other namespaces that have Ports here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attached_namespaces: Vec<String>,
    /// Other namespaces whose Ports are unplugged: the Network is not shared with them any more,
    /// or the Ports ask for what is its owner's to choose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unplugged_namespaces: Vec<String>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
