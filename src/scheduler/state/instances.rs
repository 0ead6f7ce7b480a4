//! Instances: watch events into the [`State`].
//!
//! An Instance that is not on the host where its Server is placed (the other side of a
//! migration, one that is still being deleted, one whose Server has lost its placement) has an
//! allocation of its own in the ledger, because it uses that host all the same.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::placement::facts::{Allocation, ResourceRequest};
use crate::state::State;
use pileus_api::common::Claim;
use pileus_api::conditions::{self, ConditionType};
use pileus_api::instance::Role;
use pileus_api::server::Placement;
use pileus_api::{Instance, Reason};

/// Reasons that count as a failed build of the host.
const BUILD_FAILURES: [Reason; 2] = [Reason::HypervisorFailed, Reason::NoSpace];

/// What the scheduler knows of an Instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedInstance {
    uid: String,
    server_uid: String,
    /// Name of its Host.
    pub host: String,
    /// Epoch of the placement that it was created for.
    pub epoch: i64,
    /// The resources that it uses.
    pub claim: Claim,
    primary: bool,
    realized: bool,
    /// Its host reports it as stopped for a Server of higher priority.
    stopped_for_preemption: bool,
    deleting: bool,
    /// Whether it is being built.
    pub busy: bool,
    failed: bool,
    refusal: Option<String>,
}

impl ObservedInstance {
    fn new(instance: &Instance) -> Self {
        let status = instance.status.as_ref();
        let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let ready = conditions::find(conditions, ConditionType::Ready);
        let because = |reason: Reason| ready.is_some_and(|r| r.reason == reason.as_str());
        let realized = status.is_some_and(|s| s.realized == Some(true));
        let reported = status.and_then(|s| s.observed_generation) >= instance.metadata.generation;
        let refused = ready.filter(|_| !realized && because(Reason::HostRefused));
        Self {
            uid: instance.uid().unwrap_or_default(),
            server_uid: instance.spec.server.uid.clone(),
            host: instance.spec.host.clone(),
            epoch: instance.spec.epoch,
            claim: instance.spec.claim,
            primary: instance.spec.role == Role::Primary,
            realized,
            stopped_for_preemption: instance.spec.preempted
                && reported
                && because(Reason::Preempted),
            deleting: instance.metadata.deletion_timestamp.is_some(),
            busy: status.is_none_or(|s| s.power_state.is_none()),
            failed: BUILD_FAILURES.into_iter().any(because),
            refusal: refused.map(|r| r.message.clone()),
        }
    }

    /// Whether it was created for this placement.
    #[must_use]
    pub fn realizes(&self, placement: &Placement) -> bool {
        self.host == placement.host && self.epoch == placement.epoch
    }

    /// Whether its vCPUs and memory are free for other Servers.
    #[must_use]
    pub fn is_stopped_for_preemption(&self) -> bool {
        self.stopped_for_preemption && !self.deleting
    }

    /// Whether its host has accepted it.
    #[must_use]
    pub fn is_realized(&self) -> bool {
        self.realized && !self.deleting
    }

    /// Why its host refused it, if it did. A refused Instance uses nothing of the host.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref().filter(|_| !self.deleting)
    }

    /// Whether a Server that has lost its placement must be placed on the host of this Instance.
    #[must_use]
    pub fn holds_placement(&self) -> bool {
        self.primary && !self.deleting && self.refusal.is_none()
    }
}

/// All Instances.
#[derive(Debug, Default)]
pub struct Instances {
    all: BTreeMap<Key, ObservedInstance>,
    by_server: BTreeMap<String, BTreeSet<Key>>,
    failures: BTreeMap<String, i32>,
    /// Those that exist and cannot be read.
    unreadable: BTreeSet<Key>,
}

/// The uid of the Server whose Instance has that name.
fn server_of(key: &Key) -> &str {
    key.1.rsplit_once('-').map_or("", |(uid, _)| uid)
}

impl Instances {
    /// The Instances of a Server.
    pub fn of_server(&self, server_uid: &str) -> impl Iterator<Item = &ObservedInstance> {
        let keys = self.by_server.get(server_uid).into_iter().flatten();
        keys.filter_map(|key| self.all.get(key))
    }

    /// Whether a Server has an Instance that cannot be read, and so may run anywhere.
    pub(crate) fn has_unreadable(&self, server_uid: &str) -> bool {
        self.unreadable
            .iter()
            .any(|key| server_of(key) == server_uid)
    }

    /// The Instances on a host.
    #[must_use]
    pub fn on_host(&self, host: &str) -> Vec<Key> {
        let some = self.all.iter().filter(|(_, known)| known.host == host);
        some.map(|(key, _)| key.clone()).collect()
    }

    /// How many builds failed on a host because of the host.
    #[must_use]
    pub fn failures(&self, host: &str) -> i32 {
        self.failures.get(host).copied().unwrap_or_default()
    }

    fn count_failure(&mut self, known: &ObservedInstance, by: i32) {
        if known.failed {
            let count = self.failures.entry(known.host.clone()).or_default();
            *count += by;
            if *count == 0 {
                self.failures.remove(&known.host);
            }
        }
    }

    fn insert(&mut self, key: &Key, known: ObservedInstance) -> Option<ObservedInstance> {
        self.count_failure(&known, 1);
        let server = self.by_server.entry(known.server_uid.clone());
        server.or_default().insert(key.clone());
        let before = self.all.insert(key.clone(), known);
        if let Some(before) = &before {
            self.count_failure(before, -1);
            if self.all.get(key).map(|k| &k.server_uid) != Some(&before.server_uid) {
                self.unlink(key, &before.server_uid);
            }
        }
        before
    }

    fn remove(&mut self, key: &Key) -> Option<ObservedInstance> {
        let known = self.all.remove(key)?;
        self.count_failure(&known, -1);
        self.unlink(key, &known.server_uid);
        Some(known)
    }

    fn unlink(&mut self, key: &Key, server_uid: &str) {
        if let Some(keys) = self.by_server.get_mut(server_uid) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_server.remove(server_uid);
            }
        }
    }
}

impl State {
    /// An Instance was created or has changed.
    pub fn instance_applied(&mut self, instance: &Instance) {
        let key = (
            instance.namespace().unwrap_or_default(),
            instance.name_any(),
        );
        let known = ObservedInstance::new(instance);
        let (server, host) = (known.server_uid.clone(), known.host.clone());
        let was_unreadable = self.instances.unreadable.remove(&key);
        let before = self.instances.insert(&key, known.clone());
        if before.as_ref() == Some(&known) && !was_unreadable {
            return;
        }
        if let Some(before) = before.filter(|b| b.uid != known.uid) {
            self.capacity_freed |= self.snapshot.release(&before.uid);
        }
        self.instances_changed(&server, &host);
    }

    /// An Instance exists that cannot be read. Its last version counts, if there was one; its
    /// Server is placed nowhere else.
    pub fn instance_unreadable(&mut self, key: &Key) {
        if self.instances.unreadable.insert(key.clone()) {
            self.readability_changed(key);
        }
    }

    fn readability_changed(&mut self, key: &Key) {
        if let Some(server) = self.keys_by_uid.get(server_of(key)).cloned() {
            self.enqueue(&server);
        }
    }

    /// An Instance was deleted.
    pub fn instance_deleted(&mut self, key: &Key) {
        if self.instances.unreadable.remove(key) {
            self.readability_changed(key);
        }
        if let Some(known) = self.instances.remove(key) {
            self.capacity_freed |= self.snapshot.release(&known.uid);
            self.instances_changed(&known.server_uid, &known.host);
        }
    }

    /// A full list of Instances.
    pub fn instances_listed(&mut self, listed: &[Instance], broken: &BTreeSet<Key>) {
        let name = |i: &Instance| (i.namespace().unwrap_or_default(), i.name_any());
        let names: BTreeSet<Key> = listed.iter().map(name).collect();
        let known = self.instances.all.keys();
        let deleted = known.filter(|k| !names.contains(*k) && !broken.contains(*k));
        for key in deleted.cloned().collect::<Vec<_>>() {
            self.instance_deleted(&key);
        }
        let before = std::mem::replace(&mut self.instances.unreadable, broken.clone());
        for instance in listed {
            self.instance_applied(instance);
        }
        for key in before.symmetric_difference(broken) {
            self.readability_changed(key);
        }
    }

    fn instances_changed(&mut self, server: &str, host: &str) {
        self.account_instances(server);
        self.failed_builds_changed(host);
        if let Some(key) = self.keys_by_uid.get(server).cloned() {
            self.account(&key);
            if !self.queue.is_waiting(&key) || !self.needs_placement(&key) {
                self.enqueue(&key);
            }
        }
    }

    /// Updates the ledger entries of a Server's Instances on other hosts than the one where the
    /// Server is placed.
    pub(crate) fn account_instances(&mut self, server: &str) {
        let placed = self
            .keys_by_uid
            .get(server)
            .and_then(|key| self.servers.get(key));
        let placed = placed.and_then(|s| s.status.as_ref()?.placement.as_ref());
        let at = placed.map(|p| p.host.as_str());
        let mut freed = false;
        for known in self.instances.of_server(server) {
            if Some(known.host.as_str()) == at || known.refusal.is_some() {
                freed |= self.snapshot.release(&known.uid);
            } else {
                let resources = ResourceRequest {
                    claim: known.claim,
                    ..ResourceRequest::default()
                };
                let allocation = Allocation {
                    host: known.host.clone(),
                    resources,
                    busy: known.busy,
                    ..Allocation::default()
                };
                freed |= self.snapshot.allocate(&known.uid, allocation);
            }
        }
        self.capacity_freed |= freed;
    }
}

#[cfg(test)]
#[path = "instances_tests.rs"]
mod tests;
