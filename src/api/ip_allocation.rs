//! `IPAllocation`: the lock that makes an address unique, as Kubernetes' own IPAddress
//! is for Services.

use std::net::IpAddr;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// One address of a Subnet in use. Its name is the Subnet's uid and the address in
/// hexadecimal, so that it can be created once only. Made by the manager; users look.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "IPAllocation",
    plural = "ipallocations",
    shortname = "ipa",
    category = "pileus",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.port"),
    printcolumn(name = "MAC", type_ = "string", json_path = ".spec.macAddress"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message(Message::Message(
        "an IPAllocation cannot be changed".into()
    ))
)]
#[serde(rename_all = "camelCase")]
pub struct IPAllocationSpec {
    /// The address, without prefix length.
    pub address: String,
    /// Name of the Subnet, in the same namespace.
    pub subnet: String,
    /// Ethernet address that answers for it, when a Port holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Name of the Port that holds it; absent for addresses that the Subnet itself needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Namespace of the Port, when it is another one than the Subnet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_namespace: Option<String>,
    /// uid of the Port: a Port of the same name made later does not hold the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_uid: Option<String>,
}

/// Name of the IPAllocation of an address.
#[must_use]
pub fn allocation_name(subnet_uid: &str, address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => format!("{subnet_uid}-{}", hex::encode(a.octets())),
        IpAddr::V6(a) => format!("{subnet_uid}-{}", hex::encode(a.octets())),
    }
}
