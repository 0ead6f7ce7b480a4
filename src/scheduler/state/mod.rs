//! The scheduler's memory and queue, without I/O: watch events and outcomes of writes
//! go in, writes come out.
//!
//! ```text
//!            event, wake                 decide               outcome
//!  Servers ──────────────> pending ──┬──────────> writing ──┬──────────> placed
//!                             ^      └─> waiting     │ ^    └─ conflict: the newer
//!                             └────────────┘         └─┘       version decides anew
//! ```
//! While a binding is being written its claim is assumed: it is in the ledger, and stays
//! there until the API server has said for certain that it was not taken. One write for
//! a Server at a time.

mod decide;
mod gang;
pub(crate) mod instances;
pub(crate) mod preemption;
pub(crate) mod queue;
mod references;
pub(crate) mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::objects::catalogue::Catalogue;
pub use crate::objects::catalogue::Key;
use crate::objects::resolve::allocation;
use crate::placement::placer::Placer;
use crate::placement::snapshot::Snapshot;
use crate::state::instances::{Instances, ObservedInstance};
use crate::state::preemption::nomination_key;
use crate::state::queue::{Queue, WaitReason};
use pileus_api::conditions;
use pileus_api::names::{MANAGER_FINALIZER, instance_name};
use pileus_api::server::{Nomination, Placement, Preemption, Refusal};
use pileus_api::{ConditionType, Host, SchedulerPolicy, Server};
use reports::Report;

/// The scheduler's part of a Server's status.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SchedulerStatus {
    /// The decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Hosts that refused it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Where room is kept for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nomination: Option<Nomination>,
    /// For whom it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// Condition Scheduled.
    pub conditions: Vec<Condition>,
}

/// A status to be written, to the very version of the Server that it was decided from.
#[derive(Clone, Debug)]
pub struct StatusWrite {
    /// Whose status.
    pub key: Key,
    /// The version.
    pub server: Arc<Server>,
    /// The status.
    pub status: SchedulerStatus,
    /// What it is.
    pub decision: Decision,
}

/// What a [`Write`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A placement.
    Placed,
    /// A placement stands, and its Server gives way to another.
    Preempted,
    /// The same, and it need not any more.
    Resumed,
    /// Why there is no placement; whether the condition's status or reason changes, which is
    /// worth an event.
    Unscheduled {
        /// See above.
        transition: bool,
    },
}

/// What became of a [`Write`].
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Written; the Server as it is now.
    Written(Arc<Server>),
    /// The Server had changed, or is gone.
    Conflict,
    /// Refused for good; worth another try after a while.
    Rejected,
}

/// What is being written for a Server.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) decision: Decision,
    /// Where room is kept for it.
    pub(crate) nomination: Option<Nomination>,
    /// A conflict: the newer version has not been seen yet.
    pub(crate) conflict: bool,
}

/// The scheduler's memory.
#[derive(Default)]
pub struct State {
    pub(crate) placer: Placer,
    pub(crate) snapshot: Snapshot,
    pub(crate) servers: BTreeMap<Key, Arc<Server>>,
    pub(crate) catalogue: Catalogue,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) policies: BTreeMap<String, SchedulerPolicy>,
    /// What is said of objects may have to be said anew.
    pub(crate) reports_outdated: bool,
    /// Host and epoch of what waits for its Server to come back, by host.
    pub(crate) orphans: BTreeMap<String, BTreeMap<Key, i64>>,
    pub(crate) queue: Queue,
    pub(crate) instances: Instances,
    /// Servers by uid.
    pub(crate) keys_by_uid: BTreeMap<String, Key>,
    /// A host or a Server has changed so that one that waits may fit now.
    pub(crate) capacity_freed: bool,
    pub(crate) in_flight: BTreeMap<Key, InFlight>,
    /// Servers that room is kept for.
    pub(crate) nominated: BTreeSet<Key>,
    /// When a Server that had room kept for it in vain may have it again.
    pub(crate) nominate_again_after: BTreeMap<Key, Timestamp>,
    /// When anybody may, after such a turn.
    pub(crate) next_nomination_after: Option<Timestamp>,
    /// Servers known by a write's answer, which the watch has yet to catch up with.
    ahead_of_watch: BTreeSet<Key>,
}

fn key(server: &Server) -> Key {
    (server.namespace().unwrap_or_default(), server.name_any())
}

fn placement(server: &Server) -> Option<&Placement> {
    server.status.as_ref()?.placement.as_ref()
}

/// Whether the version `a` is older than `b`, where both are numbers, as they are with
/// every Kubernetes on etcd.
fn is_older(a: &Server, b: &Server) -> bool {
    let number = |s: &Server| s.resource_version()?.parse::<u64>().ok();
    matches!((number(a), number(b)), (Some(a), Some(b)) if a < b)
}

impl State {
    /// The ledger.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Number of Servers that wait for a decision or for room.
    #[must_use]
    pub fn queue_length(&self) -> usize {
        self.queue.len()
    }

    /// A Server was made or has changed. A version older than the known one is passed
    /// over: it was on its way when a write's answer overtook it.
    pub fn server_applied(&mut self, server: Server) {
        let key = key(&server);
        let mut wishes_changed = true;
        if let Some(known) = self.servers.get(&key) {
            if known.uid() != server.uid() {
                self.server_deleted(&key);
            } else if self.ahead_of_watch.contains(&key) && is_older(&server, known) {
                return;
            } else {
                wishes_changed = known.spec != server.spec;
            }
        }
        self.ahead_of_watch.remove(&key);
        self.keys_by_uid
            .insert(server.uid().unwrap_or_default(), key.clone());
        self.servers.insert(key.clone(), Arc::new(server));
        let conflict = self.in_flight.get(&key).is_some_and(|w| w.conflict);
        if conflict {
            let write = self.in_flight.remove(&key);
            self.capacity_freed |= write.is_some_and(|w| w.decision == Decision::Preempted);
        }
        if wishes_changed {
            self.queue.reset_backoff(&key);
        }
        self.account(&key);
        // Whoever waits need not be asked again because of what others write to it.
        if wishes_changed || conflict || !self.queue.is_waiting(&key) || !self.needs_placement(&key)
        {
            self.enqueue(&key);
        }
    }

    /// A Server is gone.
    pub fn server_deleted(&mut self, key: &Key) {
        let Some(server) = self.servers.remove(key) else {
            return;
        };
        self.in_flight.remove(key);
        self.queue.remove(key);
        self.ahead_of_watch.remove(key);
        self.nominated.remove(key);
        self.nominate_again_after.remove(key);
        let uid = server.uid().unwrap_or_default();
        self.keys_by_uid.remove(&uid);
        self.capacity_freed |= self.snapshot.release(&uid);
        self.capacity_freed |= self.snapshot.release(&nomination_key(&uid));
        // What is still there of it counts until it is gone too.
        self.account_instances(&uid);
    }

    /// A full list of Servers: what it lacks is gone.
    pub fn servers_listed(&mut self, listed: Vec<Server>, broken: &BTreeSet<Key>) {
        let names: BTreeSet<Key> = listed.iter().map(key).collect();
        let gone: Vec<Key> = self
            .servers
            .keys()
            .filter(|k| !names.contains(*k) && !broken.contains(*k))
            .cloned()
            .collect();
        for key in &gone {
            self.server_deleted(key);
        }
        for server in listed {
            self.server_applied(server);
        }
    }

    /// A write has ended. `uid` and `version` are those that it was made for.
    pub fn write_finished(&mut self, write: &StatusWrite, outcome: Outcome, now: Timestamp) {
        let key = &write.key;
        let version = write.server.resource_version().unwrap_or_default();
        let ours =
            |w: &InFlight| Some(&w.uid) == write.server.uid().as_ref() && w.version == version;
        let Some(writing) = self.in_flight.get_mut(key).filter(|w| ours(w)) else {
            return;
        };
        let unchanged = self
            .servers
            .get(key)
            .is_some_and(|s| s.resource_version().as_ref() == Some(&version));
        match outcome {
            Outcome::Written(server) => {
                self.in_flight.remove(key);
                if unchanged {
                    self.servers.insert(key.clone(), server);
                    self.ahead_of_watch.insert(key.clone());
                }
                self.account(key);
                if write.status.placement.is_some() {
                    // Whoever wants to be beside it can be now.
                    self.capacity_freed = true;
                    self.enqueue(key);
                } else {
                    self.queue.reported(key, now);
                    if !self.queue.is_waiting(key) {
                        self.enqueue(key);
                    }
                }
            }
            // Somebody wrote before us. If that was an earlier try of our own, its claim
            // must stay, so nothing is rolled back before the newer version is here.
            Outcome::Conflict if unchanged => writing.conflict = true,
            Outcome::Conflict => {
                // Who was to have the room of one that was to be stopped looks again.
                self.capacity_freed |= writing.decision == Decision::Preempted;
                self.in_flight.remove(key);
                self.account(key);
                self.enqueue(key);
            }
            Outcome::Rejected => {
                self.in_flight.remove(key);
                self.account(key);
                if self.needs_placement(key) {
                    self.queue
                        .wait(key.clone(), WaitReason::StatusRejected, now);
                }
            }
        }
    }

    /// What is to be said of the objects that decide, when that may have changed.
    pub fn reports(&mut self, now: Timestamp) -> Vec<Report> {
        if !std::mem::take(&mut self.reports_outdated) {
            return Vec::new();
        }
        let hosts: Vec<&Host> = self.hosts.values().collect();
        let policies: Vec<_> = self.policies.values().cloned().collect();
        let metrics = &self.placer.policy().settings.metrics;
        let metrics: Vec<_> = metrics.keys().cloned().collect();
        reports::all(&self.catalogue, &hosts, &policies, &metrics, now)
    }

    /// Saying it has failed, and is tried again.
    pub fn report_again(&mut self) {
        self.reports_outdated = true;
    }

    /// The refusal of a Server's host, while it is placed there.
    pub(crate) fn current_refusal(&self, server: &Server) -> Option<Refusal> {
        let placement = placement(server)?;
        let uid = server.uid()?;
        let mut known = self
            .instances
            .of_server(&uid)
            .filter(|i| i.realizes(placement));
        let message = known.find_map(|i| i.refusal())?.to_owned();
        Some(Refusal {
            name: placement.host.clone(),
            epoch: placement.epoch,
            message,
            ..Refusal::default()
        })
    }

    /// Host and epoch of an Instance that a Server without placement belongs to.
    pub(crate) fn bound_by_instance(&self, server: &Server) -> Option<(String, i64)> {
        let uid = server.uid()?;
        let bound = self
            .instances
            .of_server(&uid)
            .filter(|i| i.holds_placement());
        let latest = bound.max_by_key(|i| i.epoch)?;
        Some((latest.host.clone(), latest.epoch))
    }

    pub(crate) fn orphan(&self, key: &Key) -> Option<(String, i64)> {
        self.orphans
            .iter()
            .filter(|(host, _)| self.snapshot.host(host).is_some())
            .filter_map(|(host, orphans)| Some((host.clone(), *orphans.get(key)?)))
            .max_by_key(|(_, epoch)| *epoch)
    }

    /// Brings the ledger in line with what is known of a Server.
    pub(crate) fn account(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let uid = server.uid().unwrap_or_default();
        let writes = |decision| {
            self.in_flight
                .get(key)
                .is_some_and(|w| w.decision == decision)
        };
        let freed = match placement(server) {
            Some(placement) => {
                let mut held = allocation(server, placement, &self.catalogue);
                let own = self
                    .instances
                    .of_server(&uid)
                    .find(|i| i.realizes(placement));
                held.busy = own.is_none_or(|i| i.busy);
                if preemption_of(server).is_some()
                    && !writes(Decision::Resumed)
                    && own.is_some_and(ObservedInstance::is_stopped_for_preemption)
                {
                    held.resources.claim.vcpus = 0;
                    held.resources.claim.memory_mib = 0;
                    held.off = true;
                }
                self.snapshot.allocate(&uid, held)
            }
            None if writes(Decision::Placed) => false,
            None => self.snapshot.release(&uid),
        };
        self.capacity_freed |= freed;
        self.account_nomination(key);
        self.account_instances(&uid);
    }

    /// Whether nothing of a Server is on any host.
    pub(crate) fn is_on_no_host(&self, key: &Key, server: &Server) -> bool {
        let there = server
            .uid()
            .is_some_and(|uid| self.instances.of_server(&uid).next().is_some());
        placement(server).is_none() && !there && self.orphan(key).is_none()
    }

    /// Whether a Server wants to be placed, or placed elsewhere. Not before what there is
    /// of it is gone.
    pub(crate) fn needs_placement(&self, key: &Key) -> bool {
        self.servers.get(key).is_some_and(|server| {
            let uid = server.uid().unwrap_or_default();
            let wanting = match placement(server) {
                Some(_) => {
                    self.current_refusal(server).is_some() || preemption_of(server).is_some()
                }
                None => {
                    self.bound_by_instance(server).is_some()
                        || self.instances.of_server(&uid).next().is_none()
                }
            };
            wanting
                && server.metadata.deletion_timestamp.is_none()
                && server.finalizers().iter().any(|f| f == MANAGER_FINALIZER)
        })
    }

    /// Higher than any epoch that the Server is known to have had: by its last Instance's
    /// name, its Instances, its refusals, or what a host holds of it.
    pub(crate) fn epoch(&self, server: &Server, orphan: Option<i64>) -> i64 {
        let uid = server.uid().unwrap_or_default();
        let status = server.status.as_ref();
        let named = status.and_then(|s| s.instance.as_deref()).and_then(|name| {
            let (_, epoch) = name.rsplit_once('-')?;
            let epoch: i64 = epoch.parse().ok()?;
            (name == instance_name(&uid, epoch)).then_some(epoch)
        });
        let refused = status.iter().flat_map(|s| &s.refusals).map(|r| r.epoch);
        let there = self.instances.of_server(&uid).map(|i| i.epoch);
        let all = refused.chain(there).chain(named).chain(orphan);
        all.max().unwrap_or(0).max(0).saturating_add(1)
    }

    /// Whether a status of it is being written.
    pub(crate) fn is_in_flight(&self, key: &Key) -> bool {
        self.in_flight.contains_key(key)
    }

    /// Brings the queue in line with what is known of a Server: it is decided next if it
    /// wants to be placed.
    pub(crate) fn enqueue(&mut self, key: &Key) {
        if !self.needs_placement(key) {
            self.queue.remove(key);
        } else if !self.in_flight.contains_key(key) {
            let created = self.servers.get(key);
            let created = created.and_then(|s| s.metadata.creation_timestamp.clone());
            self.queue.push(key.clone(), created);
        }
    }
}

/// For whom a Server is stopped.
pub(crate) fn preemption_of(server: &Server) -> Option<&Preemption> {
    server.status.as_ref()?.preemption.as_ref()
}

/// The condition Scheduled, as it is.
pub(crate) fn scheduled_condition(server: &Server) -> Option<&Condition> {
    let status = server.status.as_ref()?;
    conditions::find(&status.conditions, ConditionType::Scheduled)
}

#[cfg(test)]
mod tests;
