//! `Instance`: one incarnation of a Server on one host, with nothing left to decide.
//! Made by the manager, made real by the agent; users may look, not touch.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Claim;
use super::image::DiskFormat;
use super::names::{host_namespace, instance_name};
use super::pci::GivenDevice;
use super::server::{ConfigDrive, Hardware, OnGuestShutdown, PowerState, RunState};
use super::topology::GuestTopology;

/// One incarnation of a Server on one host.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Instance",
    plural = "instances",
    category = "pileus",
    namespaced,
    status = "InstanceStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(
        name = "Namespace",
        type_ = "string",
        json_path = ".spec.server.namespace"
    ),
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.server.name"),
    selectable = ".spec.host",
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Power", type_ = "string", json_path = ".status.powerState"),
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
pub struct InstanceSpec {
    /// The Server that it realises.
    pub server: ServerIdentity,
    /// Name of the Host.
    pub host: String,
    /// Number of the placement; a lower one than the host has seen is not touched.
    #[schemars(range(min = 1))]
    pub epoch: i64,
    /// What it is for the Server.
    #[serde(default)]
    pub role: Role,
    /// The domain's uuid and the guest's instance-id.
    #[serde(rename = "instanceID")]
    pub instance_id: String,
    /// Processors, memory and root disk.
    pub claim: Claim,
    /// NUMA nodes of the guest; the host's kernel places it freely when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<GuestTopology>,
    /// PCI devices of the host that the guest has to itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pci_devices: Vec<GivenDevice>,
    /// Hardware fixed by an earlier boot; chosen by the agent and reported when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Where the root disk comes from.
    pub image: InstanceImage,
    /// Interfaces, in the order that the guest sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nics: Vec<Nic>,
    /// Name of the Secret, in the same namespace, with the guest's data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_data: Option<String>,
    /// Whether the guest gets a config drive.
    #[serde(default)]
    pub config_drive: ConfigDrive,
    /// What the machine should do.
    #[serde(default)]
    pub run_state: RunState,
    /// It is stopped whatever `runState` says, and of its claim only the disk counts: its
    /// processors and memory are for a Server of higher priority.
    #[serde(default)]
    pub preempted: bool,
    /// What happens when the guest shuts itself down.
    #[serde(default)]
    pub on_guest_shutdown: OnGuestShutdown,
    /// How long a guest may take to shut down, in seconds.
    #[serde(default)]
    pub shutdown_timeout_seconds: i32,
    /// What its host does with the VM when this Instance is deleted.
    #[serde(default)]
    pub on_deletion: OnDeletion,
}

impl Instance {
    /// Whether it is where Pileus makes Instances, under the name that Pileus gives them: in the
    /// namespace of its Host, named by its Server's uid and its epoch. Who may create Instances
    /// elsewhere has made it otherwise, and it says nothing about any Server, Host or Image.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        let spec = &self.spec;
        !spec.server.uid.is_empty()
            && self.metadata.namespace == Some(host_namespace(&spec.host))
            && self.metadata.name == Some(instance_name(&spec.server.uid, spec.epoch))
    }
}

impl InstanceSpec {
    /// What the machine should do now.
    #[must_use]
    pub fn run_state_in_force(&self) -> RunState {
        if self.preempted {
            RunState::Stopped
        } else {
            self.run_state
        }
    }
}

/// What a host does with the VM of an Instance that is deleted.
///
/// Kubernetes deletes every object of a kind with the kind's definition, and every object in
/// a namespace with the namespace. Neither is a word about VMs, so a deletion alone removes
/// none: the manager must have ordered it, because the Server itself was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnDeletion {
    /// VM and disks stay as they are, and the Host reports them as an orphan.
    #[default]
    Release,
    /// VM and disks are removed.
    Remove,
}

/// The Server behind an Instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerIdentity {
    /// Namespace of the Server.
    pub namespace: String,
    /// Name of the Server.
    pub name: String,
    /// uid of the Server.
    pub uid: String,
}

/// What an Instance is for its Server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// It is the Server.
    #[default]
    Primary,
    /// It will be, when a move is done.
    Incoming,
}

/// Where the root disk of an Instance comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceImage {
    /// Namespace and name of the Image, for people and messages.
    pub name: String,
    /// uid of the Image.
    pub uid: String,
    /// Format of the disk.
    pub disk_format: DiskFormat,
    /// The disk.
    pub disk: InstanceSource,
    /// Kernel to boot directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<InstanceSource>,
    /// Initial RAM disk for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<InstanceSource>,
    /// Command line for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub kernel_command_line: Option<String>,
    /// Glance's properties.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

/// Where bytes come from, and which they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSource {
    /// URL of the bytes.
    #[schemars(length(max = 4096))]
    pub url: String,
    /// Checksum that the user gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// `sha256:…` that the bytes must have; when absent the agent imports, reports the
    /// digest and waits for the manager to confirm it here before a guest uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// One interface, fully resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// Name of the interface within the Server.
    pub name: String,
    /// Name of the Port, for people.
    pub port: String,
    /// The logical port's name in OVN, a uuid.
    #[serde(rename = "portID")]
    pub port_id: String,
    /// Ethernet address.
    pub mac_address: String,
    /// Largest packet in bytes.
    pub mtu: i32,
    /// IP addresses, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
}

/// What the host sees. Written by the agent alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Generation of the spec that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the machine does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,
    /// Boot id of the host when this was written; distinguishes a reboot of the host from a
    /// shutdown of the guest.
    #[serde(
        default,
        rename = "hostBootID",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_boot_id: Option<String>,
    /// Hardware fixed at first boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// The image's disk as imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImportedImage>,
    /// The guest shut itself down and stays so by policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_shutdown: Option<bool>,
    /// The agent has taken it on: a domain or a disk may exist from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub realized: Option<bool>,
    /// Starts since creation that were not asked for: crashes and host reboots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i64>,
    /// Conditions: Ready, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// An image's bytes on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedImage {
    /// `sha256:…` of the disk.
    pub digest: String,
    /// Size of the file in bytes.
    pub size: i64,
    /// Size of the disk in it, in bytes.
    pub virtual_size: i64,
    /// `sha256:…` of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_digest: Option<String>,
    /// `sha256:…` of the initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_digest: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_where_pileus_makes_it_counts() {
        let mut instance = Instance::new("u-1-3", InstanceSpec::default());
        instance.spec.server.uid = "u-1".into();
        instance.spec.epoch = 3;
        instance.spec.host = "h1".into();
        let at = |namespace: &str| {
            let mut instance = instance.clone();
            instance.metadata.namespace = Some(namespace.into());
            instance
        };
        assert!(at("pileus-host-h1").is_genuine());
        assert!(!at("demo").is_genuine() && !at("pileus-host-h2").is_genuine());
        let changed = |change: &dyn Fn(&mut Instance)| {
            let mut instance = at("pileus-host-h1");
            change(&mut instance);
            instance.is_genuine()
        };
        assert!(!changed(&|i| i.metadata.name = Some("mine".into())));
        assert!(!changed(&|i| i.spec.server.uid = "u-2".into()));
        assert!(!changed(&|i| i.spec.epoch = 4));
        assert!(!changed(&|i| i.spec.host = "h2".into()));
    }
}
