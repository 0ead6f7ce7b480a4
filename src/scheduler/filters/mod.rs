//! Filters: whether a Server can be placed on a host at all. Each has Nova's name and a file of
//! its own. To add one, add its file and its line in the list `filters!` below.
//!
//! A filter depends only on one host and one request, so that the order of filters does not
//! matter.

use std::collections::BTreeSet;

use crate::placement::request::{GroupPolicy, Request, ServerReference};
use crate::placement::snapshot::{Host, Snapshot};

/// Why a filter rejects a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The host has too little of something.
    Insufficient {
        /// How much the Server needs.
        needs: i64,
        /// How much is available on the host, 0 or more.
        has: i64,
        /// The unit, printed after the number.
        unit: &'static str,
    },
    /// Anything else, printed after the name of the host: "h1 is not Ready".
    Unsuitable(String),
}

/// What the result of a filter depends on, and so how it is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The host's profile and the request's `requirements`: runs once for all hosts with the same
    /// profile.
    Profile,
    /// The host and the request's `requirements`: runs again when the host changes.
    Host,
    /// The host's profile and the whole request, such as its namespace: runs for every decision,
    /// once for all hosts with the same profile.
    RequestProfile,
    /// The host and the whole request, such as its group: runs for every decision.
    Request,
}

/// One scheduling cycle: the request, and what is computed from it once for all hosts, as in
/// kube-scheduler's PreFilter.
pub struct CycleState<'a> {
    /// The request.
    pub request: &'a Request,
    /// Settings of the policy.
    pub settings: &'a Settings,
    /// The hosts.
    pub snapshot: &'a Snapshot,
    /// Ids of the labels of `hostSelector`; `None` for one that no host has.
    pub labels: Vec<Option<u32>>,
    /// Number of members of its group by slot, ascending.
    pub members: &'a [(u32, u32)],
    /// For each spread constraint, the number of Servers in each domain.
    pub domains: Vec<Domains>,
    /// Slots of the Servers in `same_host`.
    pub same: BTreeSet<u32>,
    /// Slots of the Servers in `different_host`.
    pub different: BTreeSet<u32>,
}

/// How many Servers of a spread set are in each domain.
pub struct Domains {
    /// By id of the label; `None` for labels with another key.
    pub counts: Vec<Option<u32>>,
    /// The number in the emptiest domain.
    pub least: u32,
}

/// Settings of filters and weighers in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Nova's `max_io_ops_per_host`.
    pub max_io_ops_per_host: i64,
    /// Nova's `max_instances_per_host`.
    pub max_instances_per_host: i64,
    /// Nova's `isolated_hosts`.
    pub isolated_hosts: BTreeSet<String>,
    /// Nova's `isolated_images`, as `namespace/name`.
    pub isolated_images: BTreeSet<String>,
    /// Nova's `restrict_isolated_hosts_to_isolated_images`.
    pub restrict_isolated_hosts: bool,
    /// Nova's `weight_setting` of metrics: ratios in thousandths, by name.
    pub metrics: std::collections::BTreeMap<String, i64>,
    /// Zone of hosts that are in no zone; Nova's `default_availability_zone`.
    pub default_zone: String,
}

impl Default for Settings {
    /// Nova's defaults.
    fn default() -> Self {
        Self {
            max_io_ops_per_host: 8,
            max_instances_per_host: 50,
            isolated_hosts: BTreeSet::new(),
            isolated_images: BTreeSet::new(),
            restrict_isolated_hosts: true,
            metrics: std::collections::BTreeMap::new(),
            default_zone: "nova".to_owned(),
        }
    }
}

impl CycleState<'_> {
    /// Number of members of the request's group on `host`.
    #[must_use]
    pub fn group_members(&self, host: Host<'_>) -> u32 {
        let slot = u32::try_from(host.slot()).unwrap_or(u32::MAX);
        let found = self.members.binary_search_by_key(&slot, |(s, _)| *s);
        found.map_or(0, |at| self.members[at].1)
    }

    /// Whether the request's group has this policy.
    #[must_use]
    pub fn has_policy(&self, policy: GroupPolicy) -> bool {
        self.request
            .group
            .as_ref()
            .is_some_and(|g| g.policy == policy)
    }
}

/// A filter.
pub trait Filter: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// What the result depends on.
    fn scope(&self) -> Scope;
    /// Whether it is needed for this request; if not, it passes every host.
    fn applies(&self, _: &CycleState<'_>) -> bool {
        true
    }
    /// Whether the Server can be placed on the host.
    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool;
    /// Why it rejects the host. Called only for hosts that do not pass, if no host fits.
    fn explain(&self, host: Host<'_>, cycle: &CycleState<'_>) -> RejectReason;
}

macro_rules! filters {
    ($($module:ident::$name:ident,)*) => {
        $(mod $module;)*
        /// Every filter.
        #[must_use]
        pub fn all() -> Vec<Box<dyn Filter>> {
            vec![$(Box::new($module::$name)),*]
        }
    };
}

filters! {
    aggregate_extra_specs::AggregateInstanceExtraSpecsFilter,
    aggregate_image_properties::AggregateImagePropertiesIsolation,
    aggregate_multi_tenancy::AggregateMultiTenancyIsolation,
    aggregate_type_affinity::AggregateTypeAffinityFilter,
    availability_zone::AvailabilityZoneFilter,
    compute::ComputeFilter,
    compute_capabilities::ComputeCapabilitiesFilter,
    core::CoreFilter,
    different_host::DifferentHostFilter,
    disk::DiskFilter,
    group_affinity::ServerGroupAffinityFilter,
    group_anti_affinity::ServerGroupAntiAffinityFilter,
    host_selector::HostSelector,
    image_properties::ImagePropertiesFilter,
    io_ops::IoOpsFilter,
    isolated_hosts::IsolatedHostsFilter,
    json::JsonFilter,
    num_instances::NumInstancesFilter,
    numa_topology::NumaTopologyFilter,
    pci_passthrough::PciPassthroughFilter,
    physical_network::PhysicalNetworkFilter,
    ram::RamFilter,
    refused::RefusedFilter,
    resource_class::ResourceClassFilter,
    same_host::SameHostFilter,
    cidr_affinity::SimpleCidrAffinityFilter,
    taint_toleration::TaintToleration,
    topology_spread::TopologySpread,
    traits::TraitFilter,
    volume_locality::VolumeLocalityFilter,
}

/// Names of Servers, for messages.
fn names(servers: &[ServerReference]) -> String {
    let names: Vec<_> = servers.iter().map(|p| p.name.as_str()).collect();
    names.join(", ")
}

pub use taint_toleration::tolerates;

fn insufficient(needs: i64, has: i64, unit: &'static str) -> RejectReason {
    let has = has.max(0);
    RejectReason::Insufficient { needs, has, unit }
}

/// Whether vCPUs, memory or disk fit: one rule with Nova's ratios and Placement's units.
fn fits(host: Host<'_>, part: usize, amount: i64) -> bool {
    amount <= host.available(part).max(0) && host.profile().units[part].allows(amount)
}

fn explain_shortage(host: Host<'_>, part: usize, amount: i64, unit: &'static str) -> RejectReason {
    let units = host.profile().units[part];
    if units.allows(amount) {
        insufficient(amount, host.available(part), unit)
    } else {
        RejectReason::Unsuitable(format!(
            "allocates {unit} to a Server in steps of {} from {} to {}, not {amount}",
            units.step, units.min, units.max
        ))
    }
}

#[cfg(test)]
mod tests;
