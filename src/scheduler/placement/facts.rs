//! What the core is told of a host and of what a Server holds there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pileus_api::common::{Claim, Ratios};

/// What a host is, whatever it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostFacts {
    /// Name of the host.
    pub name: String,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Whether the administrator lets it take new Servers.
    pub schedulable: bool,
    /// Whether an administrator works on it.
    pub maintenance: bool,
    /// What it has in all.
    pub capacity: Claim,
    /// What is kept back for the host itself.
    pub reserved: Claim,
    /// How often its resources may be given out.
    pub ratios: Ratios,
    /// QEMU's own memory for each VM, in MiB.
    pub overhead_mib: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Digests of the images that it holds.
    pub images: BTreeSet<String>,
    /// Builds that failed here lately.
    pub failed_builds: i32,
    /// Its address, as SimpleCIDRAffinityFilter compares it.
    pub address: Option<IpAddr>,
    /// What it measures of itself, in thousandths, by name.
    pub metrics: BTreeMap<String, i64>,
    /// What it has in common with many others.
    pub profile: Profile,
}

/// What many hosts have in common; kept once for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// Why what the host says of itself cannot be used, if so; names field and value.
    pub problem: Option<String>,
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// `kvm` or `qemu`.
    pub virt_type: String,
    /// Availability zone; Nova's default `nova` when absent.
    pub zone: Option<String>,
    /// Aggregates that it is in.
    pub aggregates: Vec<Aggregate>,
    /// Multipliers that its aggregates give, in thousandths, by Nova's key such as
    /// `cpu_weight_multiplier`.
    pub multipliers: BTreeMap<String, i64>,
    /// Placement's traits.
    pub traits: BTreeSet<String>,
    /// What ComputeCapabilitiesFilter compares, nested names joined by `:`.
    pub capabilities: BTreeMap<String, String>,
    /// Kubernetes' taints.
    pub taints: Vec<Taint>,
    /// Units in which processors, memory (MiB) and disk (GiB) are given out.
    pub units: [Units; 3],
    /// Other resource classes by name.
    pub inventories: BTreeMap<String, Inventory>,
    /// PCI devices for guests.
    pub devices: Vec<Device>,
    /// NUMA nodes.
    pub numa_nodes: Vec<NumaNode>,
    /// Physical networks that it reaches; every one when absent.
    pub physical_networks: Option<BTreeSet<String>>,
}

/// Placement's `min_unit`, `max_unit` and `step_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Units {
    /// Least that one Server may take, if it takes any.
    pub min: i64,
    /// Most that one Server may take.
    pub max: i64,
    /// What one Server takes is a multiple of this.
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
    /// Whether one Server may take `amount`.
    #[must_use]
    pub fn allows(&self, amount: i64) -> bool {
        amount == 0 || (amount >= self.min && amount <= self.max && amount % self.step.max(1) == 0)
    }
}

/// Placement's inventory of one resource class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inventory {
    /// All there is.
    pub total: i64,
    /// What is kept back.
    pub reserved: i64,
    /// How often it may be given out, in thousandths.
    pub ratio: i64,
    /// Units.
    pub units: Units,
}

/// A host aggregate, as far as filters look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aggregate {
    /// Its name.
    pub name: String,
    /// Its metadata.
    pub properties: BTreeMap<String, String>,
    /// Namespaces that it is kept for; every one when empty.
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
    /// Processors that guests may use.
    pub cpus: i64,
    /// Memory in MiB beside its huge pages.
    pub memory_mib: i64,
    /// Huge pages in all, by size in KiB.
    pub pages: BTreeMap<i64, i64>,
}

/// A PCI device for guests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// Its address.
    pub address: String,
    /// The alias that it is offered under.
    pub alias: String,
    /// The NUMA node that it is on, if known.
    pub node: Option<u8>,
}

/// How near to the guest's NUMA nodes its PCI devices must be; Nova's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PciAffinity {
    /// On them, as far as it is known.
    #[default]
    Legacy,
    /// On them.
    Required,
    /// On them where possible.
    Preferred,
}

/// What a guest asks of NUMA nodes: one entry for each of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NumaRequest {
    /// Processors and memory in MiB of each of the guest's nodes; at most 4.
    pub nodes: Vec<(i64, i64)>,
    /// Whether each processor gets one of the host's to itself.
    pub pinned: bool,
    /// Size of huge pages in KiB, if any.
    pub page_kib: Option<i64>,
}

/// What a Server takes of a host, beside its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResourceRequest {
    /// Processors, memory, disk.
    pub claim: Claim,
    /// Other resource classes.
    pub classes: BTreeMap<String, i64>,
    /// How many PCI devices it asks for, by alias.
    pub pci: BTreeMap<String, i64>,
    /// How near they must be.
    pub affinity: PciAffinity,
    /// Addresses of the PCI devices that it has, once it is placed.
    pub devices: BTreeSet<String>,
    /// NUMA nodes.
    pub numa: Option<NumaRequest>,
}

/// A line of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Name of the host.
    pub host: String,
    /// What it takes.
    pub resources: ResourceRequest,
    /// Its ServerGroup, in a name of the caller's.
    pub group: Option<String>,
    /// Which Servers are spread together with it, in a name of the caller's.
    pub spread: Option<String>,
    /// Whether it is being built, moved or resized: Nova's `num_io_ops`.
    pub busy: bool,
    /// Whether it is off so that others have its processors and memory: QEMU's own too.
    pub off: bool,
    /// The host's NUMA nodes that the guest's are on, as the decision said.
    pub numa_nodes: [u8; 4],
}
