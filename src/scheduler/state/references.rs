//! Objects that Servers refer to (Flavors, Images, ServerGroups, PriorityClasses) and the
//! SchedulerPolicy: watch events into the [`State`].

use std::collections::BTreeSet;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;

use crate::objects::catalogue::{Key, Priority};
use crate::objects::resolve::{group_key, image_key, virtual_size};
use crate::placement::placer::Placer;
use crate::placement::policy::Policy;
use crate::state::State;
use pileus_api::scheduler_policy::SCHEDULER_POLICY;
use pileus_api::{Flavor, Image, SchedulerPolicy, Server, ServerGroup};

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn class_of(server: &Server) -> Option<&String> {
    server.spec.placement.as_ref()?.priority_class.as_ref()
}

impl State {
    /// A Flavor was created or has changed.
    pub fn flavor_applied(&mut self, flavor: Flavor) {
        let name = flavor.name_any();
        let known = self.catalogue.flavors.get(&name).map(|f| &f.spec);
        let changed = known != Some(&flavor.spec);
        let has_resources = !flavor.spec.extra_specs.is_empty();
        self.catalogue.flavors.insert(name.clone(), flavor);
        if changed {
            self.requeue_servers(|s| s.spec.flavor.as_ref() == Some(&name));
            if has_resources {
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

    /// A Flavor was deleted.
    pub fn flavor_deleted(&mut self, name: &str) {
        self.catalogue.flavors.remove(name);
    }

    /// An Image was created or has changed.
    pub fn image_applied(&mut self, image: Image) {
        let key = key(&image);
        let known = self.catalogue.images.get(&key);
        // Its size is what a disk of 0 counts.
        let has_grown =
            virtual_size(&image).is_some() && known.and_then(virtual_size) != virtual_size(&image);
        let changed = has_grown || known.map(|i| &i.spec) != Some(&image.spec);
        let has_resources = image.spec.properties.keys().any(|k| k.starts_with("hw_"));
        self.catalogue.images.insert(key.clone(), image);
        if changed {
            self.requeue_servers(|s| image_key(s) == key);
            if has_resources || has_grown {
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

    /// An Image was deleted.
    pub fn image_deleted(&mut self, key: &Key) {
        self.catalogue.images.remove(key);
    }

    /// A ServerGroup was created or has changed.
    pub fn group_applied(&mut self, group: ServerGroup) {
        let key = key(&group);
        let known = self.catalogue.groups.get(&key).map(|g| &g.spec);
        let changed = known != Some(&group.spec);
        self.catalogue.groups.insert(key.clone(), group);
        if changed {
            self.requeue_servers(|s| group_key(s).as_ref() == Some(&key));
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

    /// A ServerGroup was deleted.
    pub fn group_deleted(&mut self, key: &Key) {
        self.catalogue.groups.remove(key);
    }

    /// A PriorityClass was created or has changed.
    pub fn priority_class_applied(&mut self, class: &PriorityClass) {
        let name = class.name_any();
        let priority = Priority::of(class);
        let before = self.catalogue.priorities.insert(name.clone(), priority);
        if before != Some(priority) {
            self.requeue_servers(|s| class_of(s) == Some(&name));
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

    /// A PriorityClass was deleted.
    pub fn priority_class_deleted(&mut self, name: &str) {
        self.catalogue.priorities.remove(name);
    }

    /// A SchedulerPolicy was created or has changed. If it is invalid, the last valid one stays in
    /// use.
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

    /// A SchedulerPolicy was deleted. Without one Nova's defaults are used.
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
        let deleted: Vec<String> = known.filter(|n| !names.contains(*n)).cloned().collect();
        for name in &deleted {
            self.policy_deleted(name);
        }
        for policy in listed {
            self.policy_applied(policy);
        }
    }

    /// The resources of a flavor or an image have changed: updates the ledger entries of its
    /// Servers.
    fn account_servers(&mut self, which: impl Fn(&Server) -> bool) {
        let some = self.servers.iter().filter(|(_, s)| which(s));
        let keys: Vec<Key> = some.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.account(key);
        }
    }

    /// Decides the waiting Servers for which `which` is true again.
    fn requeue_servers(&mut self, which: impl Fn(&Server) -> bool) {
        let selected = |key: &&Key| self.servers.get(*key).is_some_and(|s| which(s));
        let keys: Vec<Key> = self.queue.waiting().filter(selected).cloned().collect();
        for key in keys {
            self.queue.reset_backoff(&key);
            self.enqueue(&key);
        }
    }
}

#[cfg(test)]
#[path = "references_tests.rs"]
mod tests;
