//! `Port`: an attachment to a Network; owns its IP and MAC for life.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{ObjectName, Resolved};
use super::network::PortSecurity;

/// An attachment to a Network. A Server makes Ports for its inline networks; a Port made
/// by a user keeps its addresses over the Servers that use it.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Port",
    plural = "ports",
    category = "pileus",
    namespaced,
    status = "PortStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network.name"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses"),
    printcolumn(name = "MAC", type_ = "string", json_path = ".status.macAddress"),
    printcolumn(name = "Server", type_ = "string", json_path = ".status.server.name"),
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
#[x_kube(validation = Rule::new("self.network == oldSelf.network").message(Message::Message("network cannot be changed: make a new Port".into())))]
#[x_kube(validation = Rule::new("!has(oldSelf.macAddress) || (has(self.macAddress) && self.macAddress == oldSelf.macAddress)").message(Message::Message("macAddress cannot be changed: make a new Port".into())))]
#[x_kube(validation = Rule::new("!has(self.portSecurity) || self.portSecurity != 'Disabled' || !has(self.securityGroups) || size(self.securityGroups) == 0").message(Message::Message("securityGroups need portSecurity Enabled".into())))]
#[x_kube(validation = Rule::new("!has(self.portSecurity) || self.portSecurity != 'Disabled' || !has(self.allowedAddressPairs) || size(self.allowedAddressPairs) == 0").message(Message::Message("allowedAddressPairs need portSecurity Enabled; without it everything passes".into())))]
pub struct PortSpec {
    /// The Network to attach to.
    pub network: ObjectName,
    /// Addresses asked for; one of each family that the network has when empty.
    #[serde(default, rename = "fixedIPs", skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub fixed_ips: Vec<FixedIp>,
    /// Ethernet address; derived from the port's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Security groups of the same namespace; `default` when absent, none when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub security_groups: Option<Vec<String>>,
    /// Overrides the network's setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_security: Option<PortSecurity>,
    /// Further addresses that the guest may send from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub allowed_address_pairs: Vec<AddressPair>,
}

/// An address that a port asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FixedIp {
    /// Name within the port.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Subnet to take the address from; found by the address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The address; any free one of the subnet when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// An address that a guest may send from besides its own, as in Neutron.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressPair {
    /// Name within the port.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Address or CIDR.
    pub address: String,
    /// Ethernet address; the port's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
}

/// What the manager gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The logical port's name in OVN and the interface id on the host.
    #[serde(default, rename = "portID", skip_serializing_if = "Option::is_none")]
    pub port_id: Option<String>,
    /// uid of the Network.
    #[serde(
        default,
        rename = "networkUID",
        skip_serializing_if = "Option::is_none"
    )]
    pub network_uid: Option<String>,
    /// Ethernet address, kept for life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// The addresses, kept for life.
    #[serde(default, rename = "fixedIPs", skip_serializing_if = "Vec::is_empty")]
    pub fixed_ips: Vec<AllocatedIp>,
    /// The addresses with commas between them, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<String>,
    /// The Server that has the Port. No other can be built with it before that one has given
    /// it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Resolved>,
    /// Conditions: Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// An address that a port holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllocatedIp {
    /// Name of the Subnet.
    pub subnet: String,
    /// The address, without prefix length.
    pub address: String,
    /// Name of the IPAllocation that holds it.
    pub allocation: String,
}
