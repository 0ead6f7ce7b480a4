//! Hosts and HostAggregates: watch events into the [`State`].

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::state::State;
use pileus_api::{Host, HostAggregate};

impl State {
    /// A Host was created or has changed.
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
        // A restart ends the refusals of the host.
        let boot = |h: &Host| h.status.as_ref().and_then(|s| s.boot_id.clone());
        let known = self.hosts.get(&name);
        self.capacity_freed |= known.is_some_and(|known| boot(known) != boot(host));
        let labels = self.hosts.get(&name).map(ResourceExt::labels);
        self.reports_outdated |= labels != Some(host.labels());
        self.hosts.insert(name.clone(), host.clone());
        self.account_host(&name);
    }

    /// Updates the snapshot from the latest version of a Host.
    fn account_host(&mut self, name: &str) {
        let Some(host) = self.hosts.get(name) else {
            return;
        };
        let mut facts = self.catalogue.facts(host);
        facts.failed_builds = self.instances.failures(name);
        self.capacity_freed |= self.snapshot.set_host(facts);
    }

    /// The number of failed builds of a host has changed.
    pub(crate) fn failed_builds_changed(&mut self, name: &str) {
        self.account_host(name);
    }

    /// A Host was deleted.
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
        let deleted: Vec<String> = known.filter(|n| !names.contains(*n)).cloned().collect();
        for name in &deleted {
            self.host_deleted(name);
        }
        for host in listed {
            self.host_applied(host);
        }
    }

    /// A HostAggregate has changed, and with it any Host.
    fn hosts_changed(&mut self) {
        for name in self.hosts.keys().cloned().collect::<Vec<_>>() {
            self.account_host(&name);
        }
        self.reports_outdated = true;
    }

    /// A HostAggregate was created or has changed.
    pub fn aggregate_applied(&mut self, aggregate: HostAggregate) {
        if self.catalogue.aggregate_applied(aggregate) {
            self.hosts_changed();
        }
    }

    /// A HostAggregate was deleted.
    pub fn aggregate_deleted(&mut self, name: &str) {
        if self.catalogue.aggregate_deleted(name) {
            self.hosts_changed();
        }
    }

    /// A full list of HostAggregates. Those in `broken` cannot be read; their last version
    /// stays in use.
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
}
