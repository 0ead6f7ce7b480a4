//! `Flavor`: a size of Servers, as in Nova.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::common::Sharing;

/// A size that Servers can have. Cluster-scoped, made by administrators.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Flavor",
    plural = "flavors",
    category = "pileus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(name = "VCPUs", type_ = "integer", json_path = ".spec.vcpus"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory"),
    printcolumn(name = "Disk", type_ = "string", json_path = ".spec.disk"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message(Message::Message(
        "a Flavor cannot be changed, because Servers were built by it: make a new one".into()
    ))
)]
#[serde(rename_all = "camelCase")]
pub struct FlavorSpec {
    /// Virtual processors.
    #[schemars(range(min = 1, max = 512))]
    pub vcpus: i32,
    /// Memory of the guest, a quantity such as `512Mi`.
    pub memory: String,
    /// Size of the root disk, a quantity such as `20Gi`; when `0` that of the
    /// image's own disk, rounded up to whole GiB and counted as such.
    #[serde(default = "zero")]
    pub disk: String,
    /// Nova's extra specs, such as `hw:cpu_policy`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_specs: BTreeMap<String, String>,
    /// Namespaces that may use the flavor; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Sharing>,
}

fn zero() -> String {
    "0".to_owned()
}
