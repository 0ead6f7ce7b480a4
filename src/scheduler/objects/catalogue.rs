//! The objects that Servers and Hosts refer to: Flavors, Images, ServerGroups, PriorityClasses,
//! HostAggregates.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;

use crate::objects::resolve::host_facts;
use crate::placement::facts::{Aggregate, HostFacts};
use pileus_api::host::AllocationRatios;
use pileus_api::{Flavor, Host, HostAggregate, Image, Server, ServerGroup};
use pileus_values::parse_milli;

/// Namespace and name.
pub type Key = (String, String);

/// The priority of a PriorityClass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// The highest is decided first.
    pub value: i32,
    /// Whether Servers of lower priority may be stopped for it; its `preemptionPolicy`.
    pub preempts: bool,
}

impl Default for Priority {
    /// The priority of Servers without a class, as of Pods in a cluster without a default class.
    fn default() -> Self {
        Self {
            value: 0,
            preempts: true,
        }
    }
}

impl Priority {
    /// The priority of `class`.
    #[must_use]
    pub fn of(class: &PriorityClass) -> Self {
        Self {
            value: class.value,
            preempts: class.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

/// The objects that Servers and Hosts refer to.
#[derive(Default)]
pub struct Catalogue {
    /// Flavors by name.
    pub flavors: BTreeMap<String, Flavor>,
    /// Images by namespace and name.
    pub images: BTreeMap<Key, Image>,
    /// ServerGroups by namespace and name.
    pub groups: BTreeMap<Key, ServerGroup>,
    /// Kubernetes' PriorityClasses by name.
    pub priorities: BTreeMap<String, Priority>,
    /// HostAggregates by creation time and name.
    pub aggregates: BTreeMap<(String, String), HostAggregate>,
}

/// The sort key of an aggregate: the oldest first, so that a new one never changes the zone of a
/// Host.
fn age(aggregate: &HostAggregate) -> (String, String) {
    let created = aggregate.metadata.creation_timestamp.as_ref();
    let created = created.map(|t| t.0.to_string()).unwrap_or_default();
    (created, aggregate.name_any())
}

impl Catalogue {
    /// Adds or updates an aggregate. Returns whether its spec has changed.
    pub fn aggregate_applied(&mut self, aggregate: HostAggregate) -> bool {
        let sort_key = age(&aggregate);
        let known = self.aggregates.get(&sort_key).map(|a| &a.spec);
        let changed = known != Some(&aggregate.spec);
        if !self.aggregates.contains_key(&sort_key) {
            // It was deleted and created again with the same name.
            self.aggregate_deleted(&sort_key.1);
        }
        self.aggregates.insert(sort_key, aggregate);
        changed
    }

    /// Removes an aggregate. Returns whether it existed.
    pub fn aggregate_deleted(&mut self, name: &str) -> bool {
        let before = self.aggregates.len();
        self.aggregates.retain(|(_, n), _| n != name);
        self.aggregates.len() < before
    }

    /// The aggregates of a Host, the oldest first.
    fn aggregates_of<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a HostAggregate> {
        let name = host.name_any();
        let all = self.aggregates.values();
        all.filter(move |a| a.spec.holds(&name, host.labels()))
    }

    /// The facts of a Host, including its aggregates.
    #[must_use]
    pub fn facts(&self, host: &Host) -> HostFacts {
        let mut facts = host_facts(host);
        for aggregate in self.aggregates_of(host) {
            let spec = &aggregate.spec;
            for (key, multiplier) in spec.multipliers() {
                // An invalid one is reported on the aggregate and ignored here.
                if let Ok(multiplier) = multiplier {
                    let known = facts.profile.multipliers.entry(key.to_owned());
                    let lowest = known.or_insert(multiplier);
                    *lowest = multiplier.min(*lowest);
                }
            }
            facts.profile.aggregates.push(Aggregate {
                name: aggregate.name_any(),
                properties: spec.properties.clone(),
                namespaces: spec.namespaces.clone(),
            });
            if facts.profile.zone.is_none() {
                facts.profile.zone.clone_from(&spec.availability_zone);
            }
        }
        let lowest = self.ratios(host).map(|r| r.map(|(ratio, _)| ratio));
        let spec = &host.spec;
        for (ratio, own, lowest) in [
            (&mut facts.ratios.cpu, &spec.cpu_allocation_ratio, lowest[0]),
            (
                &mut facts.ratios.memory,
                &spec.memory_allocation_ratio,
                lowest[1],
            ),
            (
                &mut facts.ratios.disk,
                &spec.disk_allocation_ratio,
                lowest[2],
            ),
        ] {
            if let (None, Some(lowest)) = (own, lowest) {
                *ratio = lowest;
            }
        }
        facts
    }

    /// The lowest ratios of a Host's aggregates for vCPUs, memory and disk, in thousandths and as
    /// text.
    fn ratios(&self, host: &Host) -> [Option<(i64, String)>; 3] {
        let mut lowest = [None, None, None];
        for aggregate in self.aggregates_of(host) {
            let spec = &aggregate.spec;
            let texts = [
                &spec.cpu_allocation_ratio,
                &spec.memory_allocation_ratio,
                &spec.disk_allocation_ratio,
            ];
            for (lowest, text) in lowest.iter_mut().zip(texts) {
                // An invalid one is reported on the aggregate; nothing is allocated by it.
                let ratio = |t: &String| match parse_milli(t) {
                    Ok(ratio) => (ratio, t.clone()),
                    Err(_) => (0, "0".to_owned()),
                };
                *lowest = [lowest.take(), text.as_ref().map(ratio)]
                    .into_iter()
                    .flatten()
                    .min();
            }
        }
        lowest
    }

    /// The ratios of a Host's aggregates, for its status: the agent uses them.
    #[must_use]
    pub fn effective_ratios(&self, host: &Host) -> Option<AllocationRatios> {
        let [cpu, memory, disk] = self.ratios(host).map(|r| r.map(|(_, text)| text));
        let ratios = AllocationRatios { cpu, memory, disk };
        (ratios != AllocationRatios::default()).then_some(ratios)
    }

    /// The number of Hosts of an aggregate, and those that are in another zone because of an older
    /// aggregate: (name of the Host, name of the older aggregate, its zone).
    pub fn hosts_and_conflicts<'a>(
        &self,
        aggregate: &HostAggregate,
        hosts: impl Iterator<Item = &'a Host>,
    ) -> (i64, Vec<(String, String, String)>) {
        let mut count = 0;
        let mut conflicts = Vec::new();
        for host in hosts {
            if !aggregate.spec.holds(&host.name_any(), host.labels()) {
                continue;
            }
            count += 1;
            let decides = self
                .aggregates_of(host)
                .find_map(|a| Some((a.name_any(), a.spec.availability_zone.clone()?)));
            if let (Some(own), Some((by, zone))) = (&aggregate.spec.availability_zone, decides)
                && zone != *own
            {
                conflicts.push((host.name_any(), by, zone));
            }
        }
        (count, conflicts)
    }

    /// The priority of a Server; the default while its class does not exist.
    #[must_use]
    pub fn priority(&self, server: &Server) -> Priority {
        let class = server.spec.placement.as_ref();
        let class = class.and_then(|p| p.priority_class.as_ref());
        let known = class.and_then(|name| self.priorities.get(name));
        known.copied().unwrap_or_default()
    }

    /// Names of the PriorityClasses, for messages.
    #[must_use]
    pub fn priority_names(&self) -> BTreeSet<&str> {
        self.priorities.keys().map(String::as_str).collect()
    }
}
