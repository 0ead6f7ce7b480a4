//! What a host is, and which of its resources a Server uses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pileus_api::common::{Claim, Ratios};

/// A host without its Servers; Nova's HostState.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostFacts {
    /// Name of the host.
    pub name: String,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Whether the administrator lets it take new Servers.
    pub schedulable: bool,
    /// Whether it is in maintenance.
    pub maintenance: bool,
    /// Its total resources.
    pub capacity: Claim,
    /// Reserved for the host itself.
    pub reserved: Claim,
    /// Its allocation ratios.
    pub ratios: Ratios,
    /// QEMU's own memory for each VM, in MiB.
    pub overhead_mib: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the images in its cache.
    pub images: BTreeSet<String>,
    /// How many Instances on it failed to build.
    pub failed_builds: i32,
    /// Its address, as SimpleCIDRAffinityFilter compares it.
    pub address: Option<IpAddr>,
    /// Its metrics by name, in thousandths.
    pub metrics: BTreeMap<String, i64>,
    /// What it has in common with many other hosts.
    pub profile: Profile,
}

/// What many hosts have in common; stored once for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Why the Host object is invalid, if it is; names field and value.
    pub problem: Option<String>,
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// `kvm` or `qemu`.
    pub virt_type: String,
    /// Availability zone; Nova's default `nova` when absent.
    pub zone: Option<String>,
    /// The aggregates that it is in.
    pub aggregates: Vec<Aggregate>,
    /// Weight multipliers of its aggregates, in thousandths, by Nova's key such as
    /// `cpu_weight_multiplier`.
    pub multipliers: BTreeMap<String, i64>,
    /// Placement's traits.
    pub traits: BTreeSet<String>,
    /// Capabilities for ComputeCapabilitiesFilter; nested names are joined by `:`.
    pub capabilities: BTreeMap<String, String>,
    /// Kubernetes' taints.
    pub taints: Vec<Taint>,
    /// Units in which vCPUs, memory (MiB) and disk (GiB) are allocated.
    pub units: [Units; 3],
    /// Inventories of other resource classes, by class.
    pub inventories: BTreeMap<String, Inventory>,
    /// PCI devices for guests.
    pub devices: Vec<Device>,
    /// NUMA nodes.
    pub numa_nodes: Vec<NumaNode>,
    /// Physical networks that it is connected to; all if absent.
    pub physical_networks: Option<BTreeSet<String>>,
}

/// Placement's `min_unit`, `max_unit` and `step_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Units {
    /// The least amount of one Server, unless it is 0.
    pub min: i64,
    /// The largest amount of one Server.
    pub max: i64,
    /// Amounts are multiples of this.
    pub step: i64,
}

impl Default for Units {
    fn default() -> Self {
        Self {
            min: 0,
            max: i64::MAX,
            step: 1,
        }
    }
}

impl Units {
    /// Whether `amount` may be allocated to one Server.
    #[must_use]
    pub fn allows(&self, amount: i64) -> bool {
        amount == 0 || (amount >= self.min && amount <= self.max && amount % self.step.max(1) == 0)
    }
}

/// Placement's inventory of one resource class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inventory {
    /// The total amount.
    pub total: i64,
    /// The reserved amount.
    pub reserved: i64,
    /// The allocation ratio, in thousandths.
    pub ratio: i64,
    /// Units in which it is allocated.
    pub units: Units,
}

/// A host aggregate, as far as filters need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aggregate {
    /// Its name.
    pub name: String,
    /// Its properties; Nova's metadata.
    pub properties: BTreeMap<String, String>,
    /// Namespaces that may use its hosts; all if empty.
    pub namespaces: BTreeSet<String>,
}

/// A taint, as on a Kubernetes Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NumaNode {
    /// Its number on the host.
    pub id: u8,
    /// Number of CPUs for guests.
    pub cpus: i64,
    /// Memory in MiB without its huge pages.
    pub memory_mib: i64,
    /// Number of huge pages, by size in KiB.
    pub pages: BTreeMap<i64, i64>,
}

/// A PCI device that can be given to a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Its address.
    pub address: String,
    /// Its alias.
    pub alias: String,
    /// The NUMA node that it is on, if known.
    pub node: Option<u8>,
}

/// Nova's PCI NUMA affinity policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PciAffinity {
    /// The device is on a NUMA node of the guest, or its node is unknown.
    #[default]
    Legacy,
    /// The device is on a NUMA node of the guest.
    Required,
    /// The device is on a NUMA node of the guest if possible.
    Preferred,
}

/// The NUMA nodes of a guest; Nova's InstanceNUMATopology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NumaRequest {
    /// vCPUs and memory in MiB of each node of the guest; at most 4.
    pub nodes: Vec<(i64, i64)>,
    /// Whether each vCPU is pinned to a CPU of the host of its own.
    pub pinned: bool,
    /// Size of the huge pages in KiB, if it uses any.
    pub page_kib: Option<i64>,
}

/// The resources of a Server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceRequest {
    /// vCPUs, memory and disk.
    pub claim: Claim,
    /// Amounts of other resource classes, by class.
    pub classes: BTreeMap<String, i64>,
    /// Number of requested PCI devices, by alias.
    pub pci: BTreeMap<String, i64>,
    /// Their NUMA affinity.
    pub affinity: PciAffinity,
    /// Addresses of its PCI devices, once it is placed.
    pub devices: BTreeSet<String>,
    /// Its NUMA nodes, if it has any.
    pub numa: Option<NumaRequest>,
}

/// The resources of one host that one Server uses; Placement's allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Name of the host.
    pub host: String,
    /// The resources.
    pub resources: ResourceRequest,
    /// Id of its ServerGroup; chosen by the caller.
    pub group: Option<String>,
    /// Id of the set of Servers that it is spread with; chosen by the caller.
    pub spread: Option<String>,
    /// Whether it is being built, migrated or resized; counts in Nova's `num_io_ops`.
    pub busy: bool,
    /// Whether it is stopped for a Server of higher priority. Then QEMU's overhead is free as
    /// well.
    pub preempted: bool,
    /// The host's NUMA node of each NUMA node of the guest.
    pub numa_nodes: [u8; 4],
}
