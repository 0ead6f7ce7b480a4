//! Watch events of all kinds but Servers, into the [`State`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::objects::catalogue::{Key, Priority};
use crate::objects::resolve::{group_key, image_key};
use crate::placement::placer::Placer;
use crate::placement::policy::Policy;
use crate::state::State;
use crate::state::queue::WaitReason;
use pileus_api::scheduler_policy::SCHEDULER_POLICY;
use pileus_api::{Flavor, Host, HostAggregate, Image, SchedulerPolicy, Server, ServerGroup};

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn class_of(server: &Server) -> Option<&String> {
    server.spec.placement.as_ref()?.priority_class.as_ref()
}

impl State {
    /// A Host was made or has changed.
    pub fn host_applied(&mut self, host: &Host) {
        let name = host.name_any();
        let orphans: BTreeMap<Key, i64> = host
            .status
            .iter()
            .flat_map(|s| &s.orphans)
            .map(|o| ((o.server_namespace.clone(), o.server_name.clone()), o.epoch))
            .collect();
        if !orphans.is_empty() && self.orphans.get(&name) != Some(&orphans) {
            self.capacity_freed = true;
        }
        self.orphans.insert(name.clone(), orphans);
        // Who was refused there may ask again.
        let boot = |h: &Host| h.status.as_ref().and_then(|s| s.boot_id.clone());
        let known = self.hosts.get(&name);
        self.capacity_freed |= known.is_some_and(|known| boot(known) != boot(host));
        let labels = self.hosts.get(&name).map(ResourceExt::labels);
        self.reports_outdated |= labels != Some(host.labels());
        self.hosts.insert(name.clone(), host.clone());
        self.account_host(&name);
    }

    /// Brings the core in line with what is known of a Host.
    fn account_host(&mut self, name: &str) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let mut facts = self.catalogue.facts(host);
        facts.failed_builds = self.instances.failures(name);
        self.capacity_freed |= self.snapshot.set_host(facts);
    }

    /// Builds that failed on a host have become more or fewer.
    pub(crate) fn failed_builds_changed(&mut self, name: &str) {
        self.account_host(name);
    }

    /// A Host is gone.
    pub fn host_deleted(&mut self, name: &str) {
        self.orphans.remove(name);
        self.hosts.remove(name);
        self.snapshot.remove_host(name);
        self.reports_outdated = true;
    }

    /// A full list of Hosts.
    pub fn hosts_listed(&mut self, listed: &[Host], broken: &BTreeSet<Key>) {
        let mut names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        names.extend(broken.iter().map(|(_, name)| name.clone()));
        let known = self.hosts.keys();
        let gone: Vec<String> = known.filter(|n| !names.contains(*n)).cloned().collect();
        for name in &gone {
            self.host_deleted(name);
        }
        for host in listed {
            self.host_applied(host);
        }
    }

    /// Aggregates have changed: so may have all Hosts.
    fn hosts_changed(&mut self) {
        for name in self.hosts.keys().cloned().collect::<Vec<_>>() {
            self.account_host(&name);
        }
        self.reports_outdated = true;
    }

    /// A HostAggregate was made or has changed.
    pub fn aggregate_applied(&mut self, aggregate: HostAggregate) {
        if self.catalogue.aggregate_applied(aggregate) {
            self.hosts_changed();
        }
    }

    /// A HostAggregate is gone.
    pub fn aggregate_deleted(&mut self, name: &str) {
        if self.catalogue.aggregate_deleted(name) {
            self.hosts_changed();
        }
    }

    /// A full list of HostAggregates. One that cannot be read keeps its Hosts as they are.
    pub fn aggregates_listed(&mut self, listed: Vec<HostAggregate>, broken: &BTreeSet<Key>) {
        let mut names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        names.extend(broken.iter().map(|(_, name)| name.clone()));
        let before = self.catalogue.aggregates.len();
        self.catalogue
            .aggregates
            .retain(|(_, n), _| names.contains(n));
        let mut changed = self.catalogue.aggregates.len() < before;
        for aggregate in listed {
            changed |= self.catalogue.aggregate_applied(aggregate);
        }
        if changed {
            self.hosts_changed();
        }
    }

    /// A Flavor was made or has changed.
    pub fn flavor_applied(&mut self, flavor: Flavor) {
        let name = flavor.name_any();
        let known = self.catalogue.flavors.get(&name).map(|f| &f.spec);
        let changed = known != Some(&flavor.spec);
        let takes_more = !flavor.spec.extra_specs.is_empty();
        self.catalogue.flavors.insert(name.clone(), flavor);
        if changed {
            self.wake_servers(|s| s.spec.flavor.as_ref() == Some(&name));
            if takes_more {
                self.account_servers(|s| s.spec.flavor.as_ref() == Some(&name));
            }
        }
    }

    /// A full list of Flavors.
    pub fn flavors_listed(&mut self, listed: Vec<Flavor>) {
        let names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        let flavors = &mut self.catalogue.flavors;
        flavors.retain(|name, _| names.contains(name));
        for flavor in listed {
            self.flavor_applied(flavor);
        }
    }

    /// A Flavor is gone.
    pub fn flavor_deleted(&mut self, name: &str) {
        self.catalogue.flavors.remove(name);
    }

    /// An Image was made or has changed.
    pub fn image_applied(&mut self, image: Image) {
        let key = key(&image);
        let known = self.catalogue.images.get(&key).map(|i| &i.spec);
        let changed = known != Some(&image.spec);
        let takes_more = image.spec.properties.keys().any(|k| k.starts_with("hw_"));
        self.catalogue.images.insert(key.clone(), image);
        if changed {
            self.wake_servers(|s| image_key(s) == key);
            if takes_more {
                self.account_servers(|s| image_key(s) == key);
            }
        }
    }

    /// A full list of Images.
    pub fn images_listed(&mut self, listed: Vec<Image>) {
        let names: BTreeSet<Key> = listed.iter().map(key).collect();
        let images = &mut self.catalogue.images;
        images.retain(|key, _| names.contains(key));
        for image in listed {
            self.image_applied(image);
        }
    }

    /// An Image is gone.
    pub fn image_deleted(&mut self, key: &Key) {
        self.catalogue.images.remove(key);
    }

    /// A ServerGroup was made or has changed.
    pub fn group_applied(&mut self, group: ServerGroup) {
        let key = key(&group);
        let known = self.catalogue.groups.get(&key).map(|g| &g.spec);
        let changed = known != Some(&group.spec);
        self.catalogue.groups.insert(key.clone(), group);
        if changed {
            self.wake_servers(|s| group_key(s).as_ref() == Some(&key));
            self.reports_outdated = true;
        }
    }

    /// A full list of ServerGroups.
    pub fn groups_listed(&mut self, listed: Vec<ServerGroup>) {
        let names: BTreeSet<Key> = listed.iter().map(key).collect();
        let groups = &mut self.catalogue.groups;
        groups.retain(|key, _| names.contains(key));
        for group in listed {
            self.group_applied(group);
        }
    }

    /// A ServerGroup is gone.
    pub fn group_deleted(&mut self, key: &Key) {
        self.catalogue.groups.remove(key);
    }

    /// A PriorityClass was made or has changed.
    pub fn priority_class_applied(&mut self, class: &PriorityClass) {
        let name = class.name_any();
        let priority = Priority::of(class);
        let before = self.catalogue.priorities.insert(name.clone(), priority);
        if before != Some(priority) {
            self.wake_servers(|s| class_of(s) == Some(&name));
        }
    }

    /// A full list of PriorityClasses.
    pub fn priority_classes_listed(&mut self, listed: &[PriorityClass]) {
        let names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        let priorities = &mut self.catalogue.priorities;
        priorities.retain(|name, _| names.contains(name));
        for class in listed {
            self.priority_class_applied(class);
        }
    }

    /// A PriorityClass is gone.
    pub fn priority_class_deleted(&mut self, name: &str) {
        self.catalogue.priorities.remove(name);
    }

    /// A SchedulerPolicy was made or has changed. One that cannot be used changes nothing.
    pub fn policy_applied(&mut self, policy: SchedulerPolicy) {
        let name = policy.name_any();
        let known = self.policies.get(&name).map(|p| &p.spec);
        if known != Some(&policy.spec) {
            self.reports_outdated = true;
            if name == SCHEDULER_POLICY
                && let Ok(policy) = Policy::new(&policy.spec)
            {
                self.placer = Placer::new(policy);
                self.capacity_freed = true;
            }
        }
        self.policies.insert(name, policy);
    }

    /// A SchedulerPolicy is gone: without the one that counts Nova's own figures hold.
    pub fn policy_deleted(&mut self, name: &str) {
        if self.policies.remove(name).is_some() && name == SCHEDULER_POLICY {
            self.placer = Placer::default();
            self.capacity_freed = true;
            self.reports_outdated = true;
        }
    }

    /// A full list of SchedulerPolicies.
    pub fn policies_listed(&mut self, listed: Vec<SchedulerPolicy>, broken: &BTreeSet<Key>) {
        let mut names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        names.extend(broken.iter().map(|(_, name)| name.clone()));
        let known = self.policies.keys();
        let gone: Vec<String> = known.filter(|n| !names.contains(*n)).cloned().collect();
        for name in &gone {
            self.policy_deleted(name);
        }
        for policy in listed {
            self.policy_applied(policy);
        }
    }

    /// What a flavor or an image takes has changed: so has what Servers hold.
    fn account_servers(&mut self, which: impl Fn(&Server) -> bool) {
        let some = self.servers.iter().filter(|(_, s)| which(s));
        let keys: Vec<Key> = some.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.account(key);
        }
    }

    /// Servers that wait and that `which` is true of are decided anew.
    fn wake_servers(&mut self, which: impl Fn(&Server) -> bool) {
        let named = |key: &&Key| self.servers.get(*key).is_some_and(|s| which(s));
        let keys: Vec<Key> = self.queue.waiting().filter(named).cloned().collect();
        for key in keys {
            self.queue.reset_backoff(&key);
            self.enqueue(&key);
        }
    }

    /// Servers that wait for room, and fit now, are decided anew; the others are told
    /// the new figures in time.
    pub(crate) fn requeue_fitting(&mut self, now: Timestamp) {
        for key in self.queue.waiting_for(WaitReason::NoHostFits) {
            // Who has room kept for it looks whether that is still of use.
            if self.nominated.contains(&key) || self.would_fit(&key, now) {
                self.enqueue(&key);
            } else {
                self.queue.refresh_soon(&key);
            }
        }
    }
}

#[cfg(test)]
#[path = "references_tests.rs"]
mod tests;
