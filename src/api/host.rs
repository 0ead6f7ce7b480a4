//! `Host`: a hypervisor.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Claim;
use super::pci::{HostDevice, PciSelector};

/// A hypervisor. Cluster-scoped; registered by its agent, its spec is the administrator's.
#[derive(
    kube::CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema,
)]
#[kube(
    group = "pileus.dev",
    version = "v1alpha1",
    kind = "Host",
    plural = "hosts",
    category = "pileus",
    status = "HostStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Schedulable",
        type_ = "boolean",
        json_path = ".spec.schedulable"
    ),
    printcolumn(
        name = "VCPUs",
        type_ = "integer",
        json_path = ".status.capacity.vcpus"
    ),
    printcolumn(
        name = "Memory(MiB)",
        type_ = "integer",
        json_path = ".status.capacity.memoryMiB"
    ),
    printcolumn(
        name = "Disk(GiB)",
        type_ = "integer",
        json_path = ".status.capacity.diskGiB"
    ),
    printcolumn(
        name = "Virt",
        type_ = "string",
        json_path = ".status.capabilities.virtType"
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
pub struct HostSpec {
    /// Whether new Servers may be placed here.
    #[serde(default = "yes")]
    pub schedulable: bool,
    /// Whether an administrator works on the host: no new Servers are placed here.
    #[serde(default)]
    pub maintenance: bool,
    /// What is kept back for the host itself; what the agent reserves (`status.reserved`) when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.vcpus >= 0 && self.memoryMiB >= 0 && self.diskGiB >= 0").message(Message::Message("a reservation is not below 0".into())))]
    pub reserved: Option<Claim>,
    /// How often each processor may be given out, such as `4` or `1.5`; Nova's
    /// `cpu_allocation_ratio`, 4 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_allocation_ratio: Option<String>,
    /// How often memory may be given out; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_allocation_ratio: Option<String>,
    /// How often disk may be given out; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_allocation_ratio: Option<String>,
    /// Keeps Servers away that do not tolerate them, as on a Kubernetes Node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub taints: Vec<Taint>,
    /// Traits of the host, such as `CUSTOM_SSD`, as in Placement; for flavors and images
    /// that require or forbid them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub traits: BTreeSet<String>,
    /// Further resources by Placement's class, such as `CUSTOM_LICENSE`; for flavors that
    /// ask with `resources:CLASS`. Of VCPU, MEMORY_MB (in MiB) and DISK_GB (in GiB) only the
    /// units are heeded; the rest the agent and the ratios say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, Inventory>,
    /// PCI devices that guests may have, by the alias that flavors ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 64))]
    pub pci_devices: Vec<PciSelector>,
    /// Address of the host, as `placement.hostCIDR` of a Server compares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

fn yes() -> bool {
    true
}

/// What keeps Servers away from a Host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Key, which a toleration names.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Value, which a toleration may name.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub value: String,
    /// What it does.
    #[serde(default)]
    pub effect: TaintEffect,
}

/// What a taint does. There is no `NoExecute`: a Server that runs is never moved by a taint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// Servers without a toleration are not placed here.
    #[default]
    NoSchedule,
    /// Servers without a toleration are placed elsewhere where possible.
    PreferNoSchedule,
}

/// Placement's inventory of one class of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// All there is; none when absent.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: i64,
    /// What is kept back.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub reserved: i64,
    /// How often it may be given out, such as `1.5`; once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_ratio: Option<String>,
    /// Least that one Server may take; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub min_unit: Option<i64>,
    /// Most that one Server may take; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_unit: Option<i64>,
    /// What one Server takes is a multiple of this; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub step_size: Option<i64>,
}

/// What the agent found; the Ready condition is the manager's, made from the Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Boot id of the host.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Name of the host's chassis in OVN: the `system-id` of its Open vSwitch. Ports of Servers on
    /// the host are tied to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chassis: Option<String>,
    /// What the host has in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Claim>,
    /// What the agent keeps back by its options and the capacity that it sees, where the spec
    /// does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Claim>,
    /// QEMU's own memory for each VM in MiB, counted beside the guest's.
    #[serde(
        default,
        rename = "overheadMiB",
        skip_serializing_if = "Option::is_none"
    )]
    pub overhead_mib: Option<i64>,
    /// How often resources are given out by the Host's aggregates, where its spec does not
    /// say. Written by the scheduler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation_ratios: Option<AllocationRatios>,
    /// NUMA nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub numa_nodes: Vec<NumaNode>,
    /// How busy the host is, in whole percent, by Nova's names such as `cpu.percent`; only
    /// what `wantedMetrics` names. The mean of a minute, reported when it has changed by
    /// 10 points.
    // As a whole, as above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub metrics: BTreeMap<String, i64>,
    /// The metrics that the SchedulerPolicy weighs. Written by the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wanted_metrics: Vec<String>,
    /// PCI devices that are offered to guests, by their addresses, at most 256. Those that
    /// have virtual functions are not.
    // No list by key: the agent alone writes it, and always the whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pci_devices: Vec<HostDevice>,
    /// What the host can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// `sha256:…` of the images that the host holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// What carries our marks and has no owner: kept, adopted again by namespace and name
    /// when the owner comes back.
    // As a whole, as above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<Orphan>,
    /// Conditions: HypervisorAvailable, NetworkAvailable, DiskAvailable, CapacityAvailable,
    /// ExclusiveControl by the agent; Ready by the manager.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How often resources are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllocationRatios {
    /// Processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

impl Host {
    /// What is kept back for the host itself: by the spec, else by the agent.
    #[must_use]
    pub fn reserved_in_force(&self) -> Claim {
        let by_agent = self.status.as_ref().and_then(|s| s.reserved);
        self.spec.reserved.or(by_agent).unwrap_or_default()
    }

    /// The spec with the agent's reservation and the ratios of the Host's aggregates where it
    /// says none.
    #[must_use]
    pub fn spec_in_force(&self) -> HostSpec {
        let mut spec = self.spec.clone();
        spec.reserved = Some(self.reserved_in_force());
        if let Some(given) = self
            .status
            .as_ref()
            .and_then(|s| s.allocation_ratios.clone())
        {
            spec.cpu_allocation_ratio = spec.cpu_allocation_ratio.or(given.cpu);
            spec.memory_allocation_ratio = spec.memory_allocation_ratio.or(given.memory);
            spec.disk_allocation_ratio = spec.disk_allocation_ratio.or(given.disk);
        }
        spec
    }
}

/// A NUMA node of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NumaNode {
    /// Number of the node, as text.
    pub name: String,
    /// Numbers of its processors.
    pub cpus: Vec<i32>,
    /// Memory in MiB, huge pages and all.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: i64,
    /// Huge pages in all by their size in KiB, such as `"2048": 512`; sizes of which there
    /// are none are left out.
    // The agent alone writes it, and always the whole.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub huge_pages: BTreeMap<String, i64>,
}

/// What a host can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// `kvm`, or `qemu` when the host's configuration says so.
    pub virt_type: String,
    /// Versioned machine types, newest first, at most 32.
    #[serde(default)]
    pub machine_types: Vec<String>,
    /// Version of libvirt.
    pub libvirt_version: String,
    /// Version of QEMU.
    pub qemu_version: String,
}

/// A VM or a disk without owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// Its id on the host: the domain's uuid.
    pub name: String,
    /// Namespace of the Server that it belonged to.
    pub server_namespace: String,
    /// Name of the Server that it belonged to.
    pub server_name: String,
    /// uid of the Server that it belonged to.
    #[serde(rename = "serverUID")]
    pub server_uid: String,
    /// Epoch that it had.
    pub epoch: i64,
    /// What the machine does.
    pub power_state: super::server::PowerState,
}
