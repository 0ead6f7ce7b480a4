//! The scheduler's state and queue, without I/O: watch events and outcomes of writes go in,
//! status writes come out.
//!
//! ```text
//!           event, retry                decide               outcome
//!  Servers ─────────────> pending ──┬──────────> in flight ─┬──────────> placed
//!                            ^      └─> waiting     │  ^    └─ conflict: the newer
//!                            └────────────┘         └──┘       version is decided again
//! ```
//! A placement is assumed while it is being written, as kube-scheduler assumes a Pod: it is in
//! the ledger and stays there until it is certain that the API server did not accept it. Each
//! Server has at most one write in flight.
//!
//! | part | what it does |
//! |---|---|
//! | this file | Servers: events, outcomes of writes, ledger, queue |
//! | `hosts`, `references`, `instances` | events of the other kinds |
//! | `queue` | which Servers are to be decided, which wait and how long |
//! | `decide`, `gang` | decisions, for one Server and for a ServerGroup at once |
//! | `preemption` | what is done for a Server that no host fits |
//! | `reports` | statuses of HostAggregates, ServerGroups, Hosts and SchedulerPolicies |

mod decide;
mod gang;
mod hosts;
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
    /// The Host on which capacity is reserved for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nomination: Option<Nomination>,
    /// The Server for which it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption: Option<Preemption>,
    /// Condition Scheduled.
    pub conditions: Vec<Condition>,
}

/// A status to be written, only to the version of the Server that was decided.
#[derive(Clone, Debug)]
pub struct StatusWrite {
    /// Namespace and name of the Server.
    pub key: Key,
    /// The version that was decided.
    pub server: Arc<Server>,
    /// The status.
    pub status: SchedulerStatus,
    /// What was decided.
    pub decision: Decision,
}

/// What a [`StatusWrite`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The Server is placed.
    Placed,
    /// A placed Server is stopped for one of higher priority.
    Preempted,
    /// A Server that was stopped for another is started again.
    Resumed,
    /// The Server is not placed; its condition says why.
    Unscheduled {
        /// Whether the condition's status or reason changes, which is worth an event.
        transition: bool,
    },
}

/// The outcome of a [`StatusWrite`].
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Written; the Server as it is now.
    Written(Arc<Server>),
    /// The Server has changed or was deleted; nothing was written.
    Conflict,
    /// The API server rejected the status, and why; it is tried again later.
    Rejected(String),
}

/// A write that has not ended yet.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) decision: Decision,
    /// The nomination that is being written.
    pub(crate) nomination: Option<Nomination>,
    /// The write conflicted, and the watch has not delivered the newer version yet.
    pub(crate) conflict: bool,
}

/// The scheduler's state.
#[derive(Default)]
pub struct State {
    pub(crate) placer: Placer,
    pub(crate) snapshot: Snapshot,
    pub(crate) servers: BTreeMap<Key, Arc<Server>>,
    pub(crate) catalogue: Catalogue,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) policies: BTreeMap<String, SchedulerPolicy>,
    /// Statuses of other objects may have to be written again.
    pub(crate) reports_outdated: bool,
    /// VMs that wait for their deleted Server to be created again: epochs by Server, by host.
    pub(crate) orphans: BTreeMap<String, BTreeMap<Key, i64>>,
    pub(crate) queue: Queue,
    pub(crate) instances: Instances,
    /// Servers by uid.
    pub(crate) keys_by_uid: BTreeMap<String, Key>,
    /// Capacity was freed or a host has changed: Servers that wait may fit now.
    pub(crate) capacity_freed: bool,
    /// Servers that wait, of which it is to be seen whether they fit now.
    pub(crate) to_check: BTreeSet<Key>,
    pub(crate) in_flight: BTreeMap<Key, InFlight>,
    /// Servers with a nomination.
    pub(crate) nominated: BTreeSet<Key>,
    /// Time after which a Server may be nominated again when a nomination did not help.
    pub(crate) nominate_again_after: BTreeMap<Key, Timestamp>,
    /// Time after which any Server may be nominated again.
    pub(crate) next_nomination_after: Option<Timestamp>,
    /// Servers known from the response of a write that the watch has not delivered yet.
    ahead_of_watch: BTreeSet<Key>,
}

fn key(server: &Server) -> Key {
    (server.namespace().unwrap_or_default(), server.name_any())
}

fn placement(server: &Server) -> Option<&Placement> {
    server.status.as_ref()?.placement.as_ref()
}

/// Whether the version of `a` is older than that of `b`. Resource versions are numbers in every
/// Kubernetes on etcd.
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

    /// Whether Servers are left that are decided at once in the next call of [`Self::decide`].
    #[must_use]
    pub fn has_deferred(&self) -> bool {
        self.queue.has_deferred() || !self.to_check.is_empty()
    }

    /// Number of Servers that are pending or waiting.
    #[must_use]
    pub fn queue_length(&self) -> usize {
        self.queue.len()
    }

    /// A Server was created or has changed. A version older than the known one is ignored: the
    /// response of a write arrived before the watch event.
    pub fn server_applied(&mut self, server: Server) {
        let key = key(&server);
        let mut spec_changed = true;
        if let Some(known) = self.servers.get(&key) {
            if known.uid() != server.uid() {
                self.server_deleted(&key);
            } else if self.ahead_of_watch.contains(&key) && is_older(&server, known) {
                return;
            } else {
                spec_changed = known.spec != server.spec;
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
        if spec_changed {
            self.queue.reset_backoff(&key);
        }
        self.account(&key);
        // A change of status by another writer does not change the decision on a Server that waits.
        if spec_changed || conflict || !self.queue.is_waiting(&key) || !self.needs_placement(&key) {
            self.enqueue(&key);
        }
    }

    /// A Server was deleted.
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
        // Its Instances count until they are deleted too.
        self.account_instances(&uid);
    }

    /// A full list of Servers: those that are not in it were deleted.
    pub fn servers_listed(&mut self, listed: Vec<Server>, broken: &BTreeSet<Key>) {
        let names: BTreeSet<Key> = listed.iter().map(key).collect();
        let deleted: Vec<Key> = self
            .servers
            .keys()
            .filter(|k| !names.contains(*k) && !broken.contains(*k))
            .cloned()
            .collect();
        for key in &deleted {
            self.server_deleted(key);
        }
        for server in listed {
            self.server_applied(server);
        }
    }

    /// A write has ended.
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
                    // Servers that must be on the same host as it may fit now.
                    self.capacity_freed = true;
                    self.enqueue(key);
                } else {
                    self.queue.reported(key, now);
                    if !self.queue.is_waiting(key) {
                        self.enqueue(key);
                    }
                }
            }
            // The Server was written before. That may have been an earlier attempt of our own, so
            // the assumed placement stays until the newer version arrives.
            Outcome::Conflict if unchanged => writing.conflict = true,
            Outcome::Conflict => {
                // The Server for which this victim was chosen is decided again.
                self.capacity_freed |= writing.decision == Decision::Preempted;
                self.in_flight.remove(key);
                self.account(key);
                self.enqueue(key);
            }
            Outcome::Rejected(_) => {
                self.in_flight.remove(key);
                self.account(key);
                if self.needs_placement(key) {
                    self.queue
                        .wait(key.clone(), WaitReason::StatusRejected, now);
                }
            }
        }
    }

    /// Statuses of HostAggregates, ServerGroups, Hosts and SchedulerPolicies, if they may have
    /// changed.
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

    /// Writing the reports failed; they are written again.
    pub fn report_again(&mut self) {
        self.reports_outdated = true;
    }

    /// The refusal by the host that a Server is placed on, if any.
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

    /// Host and epoch of the Instance of a Server that has lost its placement.
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

    /// Updates the ledger entries of a Server from its latest version.
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
                let mut allocation = allocation(server, placement, &self.catalogue);
                let own = self
                    .instances
                    .of_server(&uid)
                    .find(|i| i.realizes(placement));
                allocation.busy = own.is_none_or(|i| i.busy);
                if preemption_of(server).is_some()
                    && !writes(Decision::Resumed)
                    && own.is_some_and(ObservedInstance::is_stopped_for_preemption)
                {
                    allocation.resources.claim.vcpus = 0;
                    allocation.resources.claim.memory_mib = 0;
                    allocation.preempted = true;
                }
                self.snapshot.allocate(&uid, allocation)
            }
            None if writes(Decision::Placed) => false,
            None => self.snapshot.release(&uid),
        };
        self.capacity_freed |= freed;
        self.account_nomination(key);
        self.account_instances(&uid);
    }

    /// Whether a Server has neither a placement nor an Instance nor a VM on any host.
    pub(crate) fn is_on_no_host(&self, key: &Key, server: &Server) -> bool {
        let there = server
            .uid()
            .is_some_and(|uid| self.instances.of_server(&uid).next().is_some());
        placement(server).is_none() && !there && self.orphan(key).is_none()
    }

    /// Whether a Server is to be placed, placed elsewhere or started again. A Server without
    /// placement is not placed before its old Instances are deleted.
    pub(crate) fn needs_placement(&self, key: &Key) -> bool {
        self.servers.get(key).is_some_and(|server| {
            let uid = server.uid().unwrap_or_default();
            let needs_placement = match placement(server) {
                Some(_) => {
                    self.current_refusal(server).is_some() || preemption_of(server).is_some()
                }
                None => {
                    self.bound_by_instance(server).is_some()
                        || self.instances.of_server(&uid).next().is_none()
                }
            };
            needs_placement
                && !self.instances.has_unreadable(&uid)
                && server.metadata.deletion_timestamp.is_none()
                && server.finalizers().iter().any(|f| f == MANAGER_FINALIZER)
        })
    }

    /// An epoch higher than every known one of the Server: of its last Instance's name, its
    /// Instances, its refusals, and of a VM that a host still has.
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

    /// Whether a write of its status is in flight.
    pub(crate) fn is_in_flight(&self, key: &Key) -> bool {
        self.in_flight.contains_key(key)
    }

    /// Adds a Server to the queue if it needs a placement, or removes it.
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

/// The preemption of a Server, if it is stopped for another.
pub(crate) fn preemption_of(server: &Server) -> Option<&Preemption> {
    server.status.as_ref()?.preemption.as_ref()
}

/// The current condition Scheduled.
pub(crate) fn scheduled_condition(server: &Server) -> Option<&Condition> {
    let status = server.status.as_ref()?;
    conditions::find(&status.conditions, ConditionType::Scheduled)
}

#[cfg(test)]
mod tests;
