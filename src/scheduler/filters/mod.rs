//! Filters say of a host whether it can take a Server at all. Each has Nova's name and
//! its own file; to add one, add its file and its line in [`filters`].
//!
//! A filter looks at one host and one request and at nothing else, so their order makes
//! no difference to the answer.

use std::collections::BTreeSet;

use crate::placement::request::{GroupPolicy, Request, ServerReference};
use crate::placement::snapshot::{Host, Snapshot};

/// Why a filter turns a host away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Something of which the host has too little.
    Insufficient {
        /// How much the Server needs.
        needs: i64,
        /// How much the host has left for it, 0 or more.
        has: i64,
        /// What is counted, to follow the figure.
        unit: &'static str,
    },
    /// Anything else, to follow the host's name: "h1 is not Ready".
    Unsuitable(String),
}

/// What a filter's answer hangs on; says what may be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The host's [`crate::placement::facts::Profile`] and [`crate::placement::request::Asks`] alone: asked once
    /// for all hosts with the same profile.
    Profile,
    /// The host and [`crate::placement::request::Asks`]: asked again when the host changes.
    Host,
    /// The host's profile and what is the Server's own, such as its namespace: asked for every
    /// decision, once for all hosts with the same profile.
    RequestProfile,
    /// Also what is the Server's own, such as its group: asked for every decision.
    Request,
}

/// A question about hosts, made ready.
pub struct CycleState<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// What filters are told to heed.
    pub settings: &'a Settings,
    /// The hosts.
    pub snapshot: &'a Snapshot,
    /// Numbers of the labels that are asked for; one that no host has is `None`.
    pub labels: Vec<Option<u32>>,
    /// How many members of its group each slot holds, ascending.
    pub members: &'a [(u32, u32)],
    /// Per spread constraint: how many Servers are where.
    pub domains: Vec<Domains>,
    /// Slots of the Servers of `same_host` and `different_host`.
    pub same: BTreeSet<u32>,
    /// See `same`.
    pub different: BTreeSet<u32>,
}

/// How many of the Servers that are spread together are in each domain.
pub struct Domains {
    /// By number of the label; none for labels of another key.
    pub counts: Vec<Option<u32>>,
    /// How many the emptiest holds.
    pub least: u32,
}

/// What filters are told by the policy.
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
    /// Zone of hosts that are in none.
    pub default_zone: String,
}

impl Default for Settings {
    /// Nova's.
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
    /// How many members of the request's group `host` holds.
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

/// A yes-or-no question about a host.
pub trait Filter: Send + Sync {
    /// Nova's name.
    fn name(&self) -> &'static str;
    /// What the answer hangs on.
    fn scope(&self) -> Scope;
    /// Whether the request concerns it; if not it is not asked and passes every host.
    fn applies(&self, _: &CycleState<'_>) -> bool {
        true
    }
    /// Whether the host can take the Server.
    fn passes(&self, host: Host<'_>, cycle: &CycleState<'_>) -> bool;
    /// Why not. Called only for hosts that do not pass, and only when none does.
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

/// Names of Servers, for people.
fn names(peers: &[ServerReference]) -> String {
    let names: Vec<_> = peers.iter().map(|p| p.name.as_str()).collect();
    names.join(", ")
}

pub use taint_toleration::tolerates;

fn short(needs: i64, has: i64, unit: &'static str) -> RejectReason {
    let has = has.max(0);
    RejectReason::Insufficient { needs, has, unit }
}

/// Processors, memory and disk go by one rule; Nova's figures and Placement's units.
fn fits(host: Host<'_>, part: usize, amount: i64) -> bool {
    amount <= host.available(part).max(0) && host.profile().units[part].allows(amount)
}

fn lacks(host: Host<'_>, part: usize, amount: i64, unit: &'static str) -> RejectReason {
    let units = host.profile().units[part];
    if units.allows(amount) {
        short(amount, host.available(part), unit)
    } else {
        RejectReason::Unsuitable(format!(
            "gives {unit} to one Server from {} to {} in steps of {}, not {amount}",
            units.min, units.max, units.step
        ))
    }
}

#[cfg(test)]
mod tests;
