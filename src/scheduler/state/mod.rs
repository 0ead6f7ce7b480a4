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
use crate::state::instances::{Instances, Known};
use crate::state::preemption::kept;
use crate::state::queue::{Queue, Why};
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
pub struct Write {
    /// Whose status.
    pub key: Key,
    /// The version.
    pub server: Arc<Server>,
    /// The status.
    pub status: SchedulerStatus,
    /// What it is.
    pub kind: Kind,
}

/// What a [`Write`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A placement.
    Placed,
    /// A placement stands, and its Server gives way to another.
    Preempted,
    /// The same, and it need not any more.
    Resumed,
    /// Why there is no placement; whether the condition's status or reason changes, which is
    /// worth an event.
    Unplaced {
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
    Refused,
}

/// What is being written for a Server.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) kind: Kind,
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
    pub(crate) unreported: bool,
    /// Host and epoch of what waits for its Server to come back, by host.
    pub(crate) orphans: BTreeMap<String, BTreeMap<Key, i64>>,
    pub(crate) queue: Queue,
    pub(crate) instances: Instances,
    /// Servers by uid.
    pub(crate) uids: BTreeMap<String, Key>,
    /// A host or a Server has changed so that one that waits may fit now.
    pub(crate) eased: bool,
    pub(crate) writing: BTreeMap<Key, Writing>,
    /// Servers that room is kept for.
    pub(crate) nominees: BTreeSet<Key>,
    /// When a Server that had room kept for it in vain may have it again.
    pub(crate) turns: BTreeMap<Key, Timestamp>,
    /// When anybody may, after such a turn.
    pub(crate) next_turn: Option<Timestamp>,
    /// Servers known by a write's answer, which the watch has yet to catch up with.
    answered: BTreeSet<Key>,
}

fn key(server: &Server) -> Key {
    (server.namespace().unwrap_or_default(), server.name_any())
}

fn placement(server: &Server) -> Option<&Placement> {
    server.status.as_ref()?.placement.as_ref()
}

/// Whether the version `a` is older than `b`, where both are numbers, as they are with
/// every Kubernetes on etcd.
fn older(a: &Server, b: &Server) -> bool {
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
    pub fn server_seen(&mut self, server: Server) {
        let key = key(&server);
        let mut wishes_changed = true;
        if let Some(known) = self.servers.get(&key) {
            if known.uid() != server.uid() {
                self.server_gone(&key);
            } else if self.answered.contains(&key) && older(&server, known) {
                return;
            } else {
                wishes_changed = known.spec != server.spec;
            }
        }
        self.answered.remove(&key);
        self.uids
            .insert(server.uid().unwrap_or_default(), key.clone());
        self.servers.insert(key.clone(), Arc::new(server));
        let conflict = self.writing.get(&key).is_some_and(|w| w.conflict);
        if conflict {
            let write = self.writing.remove(&key);
            self.eased |= write.is_some_and(|w| w.kind == Kind::Preempted);
        }
        if wishes_changed {
            self.queue.renew(&key);
        }
        self.enter(&key);
        // Whoever waits need not be asked again because of what others write to it.
        if wishes_changed || conflict || !self.queue.waits(&key) || !self.is_wanting(&key) {
            self.want(&key);
        }
    }

    /// A Server is gone.
    pub fn server_gone(&mut self, key: &Key) {
        let Some(server) = self.servers.remove(key) else {
            return;
        };
        self.writing.remove(key);
        self.queue.leave(key);
        self.answered.remove(key);
        self.nominees.remove(key);
        self.turns.remove(key);
        let uid = server.uid().unwrap_or_default();
        self.uids.remove(&uid);
        self.eased |= self.snapshot.release(&uid);
        self.eased |= self.snapshot.release(&kept(&uid));
        // What is still there of it counts until it is gone too.
        self.enter_instances(&uid);
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
            self.server_gone(key);
        }
        for server in listed {
            self.server_seen(server);
        }
    }

    /// A write has ended. `uid` and `version` are those that it was made for.
    pub fn written(&mut self, write: &Write, outcome: Outcome, now: Timestamp) {
        let key = &write.key;
        let version = write.server.resource_version().unwrap_or_default();
        let ours =
            |w: &Writing| Some(&w.uid) == write.server.uid().as_ref() && w.version == version;
        let Some(writing) = self.writing.get_mut(key).filter(|w| ours(w)) else {
            return;
        };
        let unchanged = self
            .servers
            .get(key)
            .is_some_and(|s| s.resource_version().as_ref() == Some(&version));
        match outcome {
            Outcome::Written(server) => {
                self.writing.remove(key);
                if unchanged {
                    self.servers.insert(key.clone(), server);
                    self.answered.insert(key.clone());
                }
                self.enter(key);
                if write.status.placement.is_some() {
                    // Whoever wants to be beside it can be now.
                    self.eased = true;
                    self.want(key);
                } else {
                    self.queue.told(key, now);
                    if !self.queue.waits(key) {
                        self.want(key);
                    }
                }
            }
            // Somebody wrote before us. If that was an earlier try of our own, its claim
            // must stay, so nothing is rolled back before the newer version is here.
            Outcome::Conflict if unchanged => writing.conflict = true,
            Outcome::Conflict => {
                // Who was to have the room of one that was to be stopped looks again.
                self.eased |= writing.kind == Kind::Preempted;
                self.writing.remove(key);
                self.enter(key);
                self.want(key);
            }
            Outcome::Refused => {
                self.writing.remove(key);
                self.enter(key);
                if self.is_wanting(key) {
                    self.queue.wait(key.clone(), Why::Refused, now);
                }
            }
        }
    }

    /// What is to be said of the objects that decide, when that may have changed.
    pub fn reports(&mut self, now: Timestamp) -> Vec<Report> {
        if !std::mem::take(&mut self.unreported) {
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
        self.unreported = true;
    }

    /// The refusal of a Server's host, while it is placed there.
    pub(crate) fn refused(&self, server: &Server) -> Option<Refusal> {
        let placement = placement(server)?;
        let uid = server.uid()?;
        let mut known = self.instances.of(&uid).filter(|i| i.is_of(placement));
        let message = known.find_map(|i| i.refusal())?.to_owned();
        Some(Refusal {
            name: placement.host.clone(),
            epoch: placement.epoch,
            message,
            ..Refusal::default()
        })
    }

    /// Host and epoch of an Instance that a Server without placement belongs to.
    pub(crate) fn bound_by(&self, server: &Server) -> Option<(String, i64)> {
        let uid = server.uid()?;
        let bound = self.instances.of(&uid).filter(|i| i.binds());
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
    pub(crate) fn enter(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let uid = server.uid().unwrap_or_default();
        let writes = |kind| self.writing.get(key).is_some_and(|w| w.kind == kind);
        let freed = match placement(server) {
            Some(placement) => {
                let mut held = allocation(server, placement, &self.catalogue);
                let own = self.instances.of(&uid).find(|i| i.is_of(placement));
                held.busy = own.is_none_or(|i| i.busy);
                if preemption(server).is_some()
                    && !writes(Kind::Resumed)
                    && own.is_some_and(Known::gave_way)
                {
                    held.resources.claim.vcpus = 0;
                    held.resources.claim.memory_mib = 0;
                    held.off = true;
                }
                self.snapshot.allocate(&uid, held)
            }
            None if writes(Kind::Placed) => false,
            None => self.snapshot.release(&uid),
        };
        self.eased |= freed;
        self.enter_kept(key);
        self.enter_instances(&uid);
    }

    /// Whether nothing of a Server is on any host.
    pub(crate) fn is_free(&self, key: &Key, server: &Server) -> bool {
        let there = server
            .uid()
            .is_some_and(|uid| self.instances.of(&uid).next().is_some());
        placement(server).is_none() && !there && self.orphan(key).is_none()
    }

    /// Whether a Server wants to be placed, or placed elsewhere. Not before what there is
    /// of it is gone.
    pub(crate) fn is_wanting(&self, key: &Key) -> bool {
        self.servers.get(key).is_some_and(|server| {
            let uid = server.uid().unwrap_or_default();
            let wanting = match placement(server) {
                Some(_) => self.refused(server).is_some() || preemption(server).is_some(),
                None => self.bound_by(server).is_some() || self.instances.of(&uid).next().is_none(),
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
        let there = self.instances.of(&uid).map(|i| i.epoch);
        let all = refused.chain(there).chain(named).chain(orphan);
        all.max().unwrap_or(0).max(0).saturating_add(1)
    }

    /// Whether a status of it is being written.
    pub(crate) fn is_writing(&self, key: &Key) -> bool {
        self.writing.contains_key(key)
    }

    /// Brings the queue in line with what is known of a Server: it is decided next if it
    /// wants to be placed.
    pub(crate) fn want(&mut self, key: &Key) {
        if !self.is_wanting(key) {
            self.queue.leave(key);
        } else if !self.writing.contains_key(key) {
            let created = self.servers.get(key);
            let created = created.and_then(|s| s.metadata.creation_timestamp.clone());
            self.queue.push(key.clone(), created);
        }
    }
}

/// For whom a Server is stopped.
pub(crate) fn preemption(server: &Server) -> Option<&Preemption> {
    server.status.as_ref()?.preemption.as_ref()
}

/// The condition Scheduled, as it is.
pub(crate) fn scheduled(server: &Server) -> Option<&Condition> {
    let status = server.status.as_ref()?;
    conditions::find(&status.conditions, ConditionType::Scheduled)
}

#[cfg(test)]
mod tests;
