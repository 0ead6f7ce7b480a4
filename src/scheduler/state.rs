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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde::Serialize;

use super::place::Placer;
use super::resolve::{Catalogue, host_facts, image_key, request};
use super::snapshot::Snapshot;
use crate::api::conditions::{self, Observation};
use crate::api::names::{MANAGER_FINALIZER, instance_name};
use crate::api::server::Placement;
use crate::api::{ConditionType, Flavor, Host, Image, Reason, Server};

/// When a Server that fits nowhere is looked at again though nothing has happened.
const RETRY: SignedDuration = SignedDuration::from_secs(60);
/// How often at most only the figures in a Server's message are brought up to date.
const REFRESH: SignedDuration = SignedDuration::from_secs(10);

/// Namespace and name.
pub type Key = (String, String);

/// The scheduler's part of a Server's status.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchedulerStatus {
    /// The decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
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
    /// Whether the condition's status or reason changes: worth an event.
    pub transition: bool,
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
struct Writing {
    uid: String,
    version: String,
    bound: bool,
    /// A conflict: the newer version has not been seen yet.
    conflict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NoHostFits,
    Unresolved,
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    why: Why,
    until: Timestamp,
}

/// The scheduler's memory.
#[derive(Default)]
pub struct State {
    placer: Placer,
    snapshot: Snapshot,
    servers: BTreeMap<Key, Arc<Server>>,
    flavors: BTreeMap<String, Flavor>,
    images: BTreeMap<Key, Image>,
    /// Host and epoch of what waits for its Server to come back, by host.
    orphans: BTreeMap<String, BTreeMap<Key, i64>>,
    /// To be decided: oldest first.
    pending: BTreeSet<(Option<Time>, Key)>,
    waiting: BTreeMap<Key, Waiting>,
    writing: BTreeMap<Key, Writing>,
    explained: BTreeMap<Key, Timestamp>,
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
        self.pending.len() + self.waiting.len()
    }

    /// A Server was made or has changed. A version older than the known one is passed
    /// over: it was on its way when a write's answer overtook it.
    pub fn server_seen(&mut self, server: Server) {
        let key = key(&server);
        if let Some(known) = self.servers.get(&key) {
            if known.uid() != server.uid() {
                self.server_gone(&key);
            } else if self.answered.contains(&key) && older(&server, known) {
                return;
            }
        }
        self.answered.remove(&key);
        self.servers.insert(key.clone(), Arc::new(server));
        if self.writing.get(&key).is_some_and(|w| w.conflict) {
            self.writing.remove(&key);
        }
        self.settle(&key);
    }

    /// A Server is gone.
    pub fn server_gone(&mut self, key: &Key) {
        let Some(server) = self.servers.remove(key) else {
            return;
        };
        self.writing.remove(key);
        self.waiting.remove(key);
        self.explained.remove(key);
        self.answered.remove(key);
        self.pending
            .remove(&(server.metadata.creation_timestamp.clone(), key.clone()));
        if self.snapshot.release(&server.uid().unwrap_or_default()) {
            self.wake(|why| why == Why::NoHostFits);
        }
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

    /// A Host was made or has changed.
    pub fn host_seen(&mut self, host: &Host) {
        let name = host.name_any();
        let orphans: BTreeMap<Key, i64> = host
            .status
            .iter()
            .flat_map(|s| &s.orphans)
            .map(|o| ((o.server_namespace.clone(), o.server_name.clone()), o.epoch))
            .collect();
        let adopts = !orphans.is_empty() && self.orphans.get(&name) != Some(&orphans);
        self.orphans.insert(name, orphans);
        if self.snapshot.set_host(host_facts(host)) || adopts {
            self.wake(|why| why == Why::NoHostFits);
        }
    }

    /// A Host is gone.
    pub fn host_gone(&mut self, name: &str) {
        self.orphans.remove(name);
        self.snapshot.remove_host(name);
    }

    /// A full list of Hosts.
    pub fn hosts_listed(&mut self, listed: &[Host], broken: &BTreeSet<Key>) {
        let mut names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        names.extend(broken.iter().map(|(_, name)| name.clone()));
        let gone: Vec<String> = self
            .snapshot
            .hosts()
            .map(|h| h.name().to_owned())
            .filter(|n| !names.contains(n))
            .collect();
        for name in &gone {
            self.host_gone(name);
        }
        for host in listed {
            self.host_seen(host);
        }
    }

    /// A Flavor was made or has changed.
    pub fn flavor_seen(&mut self, flavor: Flavor) {
        let name = flavor.name_any();
        if self.flavors.get(&name).map(|f| &f.spec) != Some(&flavor.spec) {
            self.wake_servers(|s| s.spec.flavor.as_ref() == Some(&name));
        }
        self.flavors.insert(name, flavor);
    }

    /// A full list of Flavors.
    pub fn flavors_listed(&mut self, listed: Vec<Flavor>) {
        let names: BTreeSet<String> = listed.iter().map(ResourceExt::name_any).collect();
        self.flavors.retain(|name, _| names.contains(name));
        for flavor in listed {
            self.flavor_seen(flavor);
        }
    }

    /// A Flavor is gone.
    pub fn flavor_gone(&mut self, name: &str) {
        self.flavors.remove(name);
    }

    /// An Image was made or has changed.
    pub fn image_seen(&mut self, image: Image) {
        let key = (image.namespace().unwrap_or_default(), image.name_any());
        if self.images.get(&key).map(|i| &i.spec) != Some(&image.spec) {
            self.wake_servers(|s| image_key(s) == key);
        }
        self.images.insert(key, image);
    }

    /// A full list of Images.
    pub fn images_listed(&mut self, listed: Vec<Image>) {
        let name = |i: &Image| (i.namespace().unwrap_or_default(), i.name_any());
        let names: BTreeSet<Key> = listed.iter().map(name).collect();
        self.images.retain(|key, _| names.contains(key));
        for image in listed {
            self.image_seen(image);
        }
    }

    /// An Image is gone.
    pub fn image_gone(&mut self, key: &Key) {
        self.images.remove(key);
    }

    /// Time has passed: Servers that have waited long enough are looked at again.
    pub fn tick(&mut self, now: Timestamp) {
        let due: Vec<Key> = self
            .waiting
            .iter()
            .filter(|(_, w)| w.until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &due {
            self.settle(key);
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
                if write.status.placement.is_none() {
                    self.explained.insert(key.clone(), now);
                }
                self.settle(key);
            }
            // Somebody wrote before us. If that was an earlier try of our own, its claim
            // must stay, so nothing is rolled back before the newer version is here.
            Outcome::Conflict if unchanged => writing.conflict = true,
            Outcome::Conflict => {
                self.writing.remove(key);
                self.settle(key);
            }
            Outcome::Refused => {
                self.writing.remove(key);
                self.settle(key);
                self.wait(key.clone(), Why::Refused, now + REFRESH);
            }
        }
    }

    /// Decides all that is pending; the writes must then be carried out.
    pub fn decide(&mut self, now: Timestamp) -> Vec<Write> {
        let pending = std::mem::take(&mut self.pending);
        pending
            .into_iter()
            .filter_map(|(_, key)| self.decide_one(key, now))
            .collect()
    }

    fn decide_one(&mut self, key: Key, now: Timestamp) -> Option<Write> {
        let server = self.servers.get(&key)?.clone();
        let catalogue = Catalogue {
            flavors: &self.flavors,
            images: &self.images,
        };
        let Some(request) = request(&server, &catalogue) else {
            self.wait(key, Why::Unresolved, now + RETRY);
            return None;
        };
        // A running VM that the Server's objects came back for: it stays where it is,
        // whatever the filters say of its host.
        let orphan = self.orphan(&key);
        let decision = match &orphan {
            Some((host, _)) => Ok(host.as_str()),
            None => self.placer.place(&self.snapshot, &request),
        };
        let observation = match &decision {
            Ok(host) => {
                let message = format!("placed on {host}");
                Observation::yes(ConditionType::Scheduled, Reason::Scheduled, message)
            }
            Err(why) => {
                let message = why.to_string();
                Observation::no(ConditionType::Scheduled, Reason::NoHostFits, message)
            }
        };
        let status = server.status.as_ref();
        let old = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
        let generation = server.metadata.generation;
        let conditions = conditions::merge(old, [observation], generation, now);
        let before = conditions::find(old, ConditionType::Scheduled);
        let same =
            |c: &Condition| before.is_some_and(|b| b.status == c.status && b.reason == c.reason);
        let transition = !conditions.iter().all(same);
        let placement = decision.ok().map(|host| Placement {
            host: host.to_owned(),
            epoch: epoch(&server, orphan.as_ref().map(|(_, epoch)| *epoch)),
            claim: request.asks.shape.claim,
            time: Some(Time(now)),
        });
        if let Some(placement) = &placement {
            let uid = server.uid().unwrap_or_default();
            self.snapshot.claim(&uid, &placement.host, placement.claim);
        } else {
            if conditions.first() == before {
                self.wait(key, Why::NoHostFits, now + RETRY);
                return None;
            }
            let refreshed = self.explained.get(&key).map(|t| *t + REFRESH);
            if let Some(next) = refreshed.filter(|next| !transition && *next > now) {
                self.wait(key, Why::NoHostFits, next);
                return None;
            }
            self.wait(key.clone(), Why::NoHostFits, now + RETRY);
        }
        let writing = Writing {
            uid: server.uid().unwrap_or_default(),
            version: server.resource_version().unwrap_or_default(),
            bound: placement.is_some(),
            conflict: false,
        };
        self.writing.insert(key.clone(), writing);
        Some(Write {
            key,
            server,
            status: SchedulerStatus {
                placement,
                conditions,
            },
            transition,
        })
    }

    fn orphan(&self, key: &Key) -> Option<(String, i64)> {
        self.orphans
            .iter()
            .filter(|(host, _)| self.snapshot.host(host).is_some())
            .filter_map(|(host, orphans)| Some((host.clone(), *orphans.get(key)?)))
            .max_by_key(|(_, epoch)| *epoch)
    }

    /// Brings ledger and queue in line with what is known of a Server.
    fn settle(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let uid = server.uid().unwrap_or_default();
        let writing = self.writing.get(key);
        let freed = match placement(server) {
            Some(placement) => self.snapshot.claim(&uid, &placement.host, placement.claim),
            None if writing.is_some_and(|w| w.bound) => false,
            None => self.snapshot.release(&uid),
        };
        let wanting = placement(server).is_none()
            && server.metadata.deletion_timestamp.is_none()
            && server.finalizers().iter().any(|f| f == MANAGER_FINALIZER);
        let entry = (server.metadata.creation_timestamp.clone(), key.clone());
        if !wanting {
            self.pending.remove(&entry);
            self.waiting.remove(key);
            self.explained.remove(key);
        } else if writing.is_none() {
            self.waiting.remove(key);
            self.pending.insert(entry);
        }
        if freed {
            self.wake(|why| why == Why::NoHostFits);
        }
    }

    fn wait(&mut self, key: Key, why: Why, until: Timestamp) {
        if let Some(server) = self.servers.get(&key) {
            let entry = (server.metadata.creation_timestamp.clone(), key.clone());
            self.pending.remove(&entry);
            self.waiting.insert(key, Waiting { why, until });
        }
    }

    fn wake(&mut self, which: impl Fn(Why) -> bool) {
        let keys: Vec<Key> = self
            .waiting
            .iter()
            .filter(|(_, w)| which(w.why))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            self.settle(key);
        }
    }

    fn wake_servers(&mut self, which: impl Fn(&Server) -> bool) {
        let named = |key: &&Key| self.servers.get(*key).is_some_and(|s| which(s));
        let keys: Vec<Key> = self.waiting.keys().filter(named).cloned().collect();
        for key in &keys {
            self.settle(key);
        }
    }
}

/// Higher than any epoch that the Server is known to have had: by its last Instance's
/// name, or by what a host holds of it.
fn epoch(server: &Server, orphan: Option<i64>) -> i64 {
    let status = server.status.as_ref();
    let instance = status.and_then(|s| s.instance.as_deref()).and_then(|name| {
        let (_, epoch) = name.rsplit_once('-')?;
        let epoch: i64 = epoch.parse().ok()?;
        (name == instance_name(&server.uid()?, epoch)).then_some(epoch)
    });
    instance.max(orphan).unwrap_or(0).max(0).saturating_add(1)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
