//! What Servers and Hosts refer to: flavors, images, groups, priorities, aggregates.

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

/// What a PriorityClass says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// The higher comes first.
    pub value: i32,
    /// Whether others may be stopped for it, as its `preemptionPolicy` says.
    pub preempts: bool,
}

impl Default for Priority {
    /// That of Servers that name no class, as of Pods in a cluster without a default one.
    fn default() -> Self {
        Self {
            value: 0,
            preempts: true,
        }
    }
}

impl Priority {
    /// What `class` says.
    #[must_use]
    pub fn of(class: &PriorityClass) -> Self {
        Self {
            value: class.value,
            preempts: class.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

/// What Servers and Hosts refer to.
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
    /// Aggregates by age and name.
    pub aggregates: BTreeMap<(String, String), HostAggregate>,
}

/// Its place among aggregates: the oldest first, so that a later one never changes the
/// zone of a Host that is in one.
fn age(aggregate: &HostAggregate) -> (String, String) {
    let created = aggregate.metadata.creation_timestamp.as_ref();
    let created = created.map(|t| t.0.to_string()).unwrap_or_default();
    (created, aggregate.name_any())
}

impl Catalogue {
    /// Takes in an aggregate, new or changed. Says whether its spec changed.
    pub fn aggregate_applied(&mut self, aggregate: HostAggregate) -> bool {
        let place = age(&aggregate);
        let known = self.aggregates.get(&place).map(|a| &a.spec);
        let changed = known != Some(&aggregate.spec);
        if !self.aggregates.contains_key(&place) {
            // The same name, made anew.
            self.aggregate_deleted(&place.1);
        }
        self.aggregates.insert(place, aggregate);
        changed
    }

    /// Forgets an aggregate. Says whether it was there.
    pub fn aggregate_deleted(&mut self, name: &str) -> bool {
        let before = self.aggregates.len();
        self.aggregates.retain(|(_, n), _| n != name);
        self.aggregates.len() < before
    }

    /// Aggregates that a Host is in, the oldest first.
    fn aggregates_of<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a HostAggregate> {
        let name = host.name_any();
        let all = self.aggregates.values();
        all.filter(move |a| a.spec.holds(&name, host.labels()))
    }

    /// What the core knows of a Host, its aggregates included.
    #[must_use]
    pub fn facts(&self, host: &Host) -> HostFacts {
        let mut facts = host_facts(host);
        for aggregate in self.aggregates_of(host) {
            let spec = &aggregate.spec;
            for (key, multiplier) in spec.multipliers() {
                // One that cannot be read is told on the aggregate, and does not count.
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
        for (ratio, said, lowest) in [
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
            if let (None, Some(lowest)) = (said, lowest) {
                *ratio = lowest;
            }
        }
        facts
    }

    /// The lowest ratios of a Host's aggregates, in thousandths and as they are written:
    /// of processors, memory and disk.
    fn ratios(&self, host: &Host) -> [Option<(i64, String)>; 3] {
        let mut lowest = [None, None, None];
        for aggregate in self.aggregates_of(host) {
            let spec = &aggregate.spec;
            let said = [
                &spec.cpu_allocation_ratio,
                &spec.memory_allocation_ratio,
                &spec.disk_allocation_ratio,
            ];
            for (lowest, text) in lowest.iter_mut().zip(said) {
                // One that cannot be read is told on the aggregate, and gives out nothing.
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

    /// What a Host's agent is told of its aggregates' ratios.
    #[must_use]
    pub fn ratios_in_force(&self, host: &Host) -> Option<AllocationRatios> {
        let [cpu, memory, disk] = self.ratios(host).map(|r| r.map(|(_, text)| text));
        let ratios = AllocationRatios { cpu, memory, disk };
        (ratios != AllocationRatios::default()).then_some(ratios)
    }

    /// Hosts of an aggregate, and those whose zone an older aggregate decides against its
    /// own: (name of the Host, of the other aggregate, its zone).
    pub fn standing<'a>(
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

    /// The priority of a Server; the usual one while its class does not exist.
    #[must_use]
    pub fn priority(&self, server: &Server) -> Priority {
        let class = server.spec.placement.as_ref();
        let class = class.and_then(|p| p.priority_class.as_ref());
        let known = class.and_then(|name| self.priorities.get(name));
        known.copied().unwrap_or_default()
    }

    /// Names of the PriorityClasses, for people.
    #[must_use]
    pub fn priority_names(&self) -> BTreeSet<&str> {
        self.priorities.keys().map(String::as_str).collect()
    }
}
