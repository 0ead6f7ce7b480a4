//! Decisions: pending Servers go in, status writes come out.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::objects::resolve::{Unresolved, allocation, request};
use crate::placement::devices;
use crate::placement::request::Request;
use crate::state::gang::GangFailures;
use crate::state::queue::WaitReason;
use crate::state::{
    Decision, InFlight, SchedulerStatus, State, StatusWrite, preemption_of, scheduled_condition,
};
use pileus_api::common::Claim;
use pileus_api::conditions::{self, Observation};
use pileus_api::server::{Nomination, Placement, Refusal};
use pileus_api::{ConditionType, Reason, Server};

/// How long a Server is not placed again on a host that refused it.
const REFUSAL_TIMEOUT: SignedDuration = SignedDuration::from_secs(600);
/// How many refusals a Server's status holds at most.
const MAX_REFUSALS: usize = 16;
/// How many hosts filters may be asked about one by one in a pass, for the Servers of one namespace:
/// so much takes some hundredths of a second. What is over that waits for the next pass, so that
/// events are heard in between, and Servers of other namespaces.
const MAX_NAMESPACE_WORK: u64 = 100_000;
/// The same for all namespaces.
const MAX_WORK: u64 = 400_000;

/// What a pass has done for each namespace.
#[derive(Default)]
struct Effort {
    all: u64,
    by_namespace: BTreeMap<String, u64>,
}

impl Effort {
    fn add(&mut self, namespace: String, work: u64) {
        self.all += work;
        *self.by_namespace.entry(namespace).or_default() += work;
    }

    /// Whether the pass has done enough for this namespace.
    fn is_spent(&self, namespace: &str) -> bool {
        let own = self
            .by_namespace
            .get(namespace)
            .copied()
            .unwrap_or_default();
        own >= MAX_NAMESPACE_WORK || (self.all >= MAX_WORK && own > 0)
    }
}

impl State {
    /// Decides the pending Servers; the writes must then be carried out. What is expensive for one
    /// namespace is spread over several calls, see [`Self::has_deferred`].
    ///
    /// The highest priority comes first, and of equal ones the Server that was created first.
    pub fn decide(&mut self, now: Timestamp) -> Vec<StatusWrite> {
        let mut effort = Effort::default();
        if std::mem::take(&mut self.capacity_freed) {
            let waiting = self.queue.waiting_for(WaitReason::NoHostFits);
            self.to_check.extend(waiting);
        }
        self.requeue_fitting(&mut effort, now);
        // Servers whose retry is due.
        for key in self.queue.due(now) {
            self.enqueue(&key);
        }
        let mut pending: Vec<_> = self
            .queue
            .take_pending()
            .into_iter()
            .filter_map(|key| {
                let server = self.servers.get(&key)?.clone();
                let request = self.request(&server, now);
                Some((key, server, request))
            })
            .collect();
        // Members of a gang that is placed in part come before all others, because capacity for
        // all of them was there when the first was placed.
        pending.sort_by_key(|(_, server, r)| {
            let started = r.as_ref().is_ok_and(|r| self.is_gang_started(r));
            (!started, Reverse(self.catalogue.priority(server).value))
        });
        let mut failures = GangFailures::default();
        let mut writes = Vec::new();
        for (key, server, request) in pending {
            // A gang has been decided as a whole at its first member.
            if self.in_flight.contains_key(&key) {
                continue;
            }
            if effort.is_spent(&key.0) {
                let created = server.metadata.creation_timestamp.clone();
                self.queue.defer(key, created);
                continue;
            }
            let before = self.placer.work();
            let namespace = key.0.clone();
            match request {
                Ok(request)
                    if self.is_on_no_host(&key, &server)
                        && self.is_in_incomplete_gang(&request) =>
                {
                    self.decide_gang(&key, &server, &request, &mut failures, &mut writes, now);
                }
                request => self.decide_one(key, server, request, &mut writes, now),
            }
            effort.add(namespace, self.placer.work() - before);
        }
        writes
    }

    pub(crate) fn request(&self, server: &Server, now: Timestamp) -> Result<Request, Unresolved> {
        let uid = |key: &Key| self.servers.get(key)?.uid();
        let mut request = request(server, &self.catalogue, &uid)?;
        let refusals = server.status.iter().flat_map(|s| &s.refusals);
        let in_effect =
            refusals.filter_map(|r| Some((r.name.clone(), self.refusal_in_effect(r, now)?)));
        request.refused_by = in_effect.collect();
        if let Some(refused) = self.current_refusal(server) {
            let reason = format!("refuses it: {}", refused.message);
            request.refused_by.insert(refused.name, reason);
        }
        Ok(request)
    }

    /// The message of a refusal while it is in effect: for [`REFUSAL_TIMEOUT`], unless the host
    /// is restarted or gets more free capacity before.
    fn refusal_in_effect(&self, refusal: &Refusal, now: Timestamp) -> Option<String> {
        let until = refusal.time.as_ref()?.0 + REFUSAL_TIMEOUT;
        let host = self.hosts.get(&refusal.name);
        let boot = host.and_then(|h| h.status.as_ref()?.boot_id.as_ref());
        let started = boot.zip(refusal.boot_id.as_ref());
        let started = started.is_some_and(|(is, was)| is != was);
        let more = refusal.left.zip(self.free_resources(&refusal.name));
        let more = more.is_some_and(|(was, is)| {
            is.vcpus > was.vcpus || is.memory_mib > was.memory_mib || is.disk_gib > was.disk_gib
        });
        (now < until && !started && !more).then(|| {
            format!(
                "refused it ({}); it is tried again at {until:.0}, or when the host was restarted or \
                 has more free capacity",
                refusal.message
            )
        })
    }

    /// What is free on a host.
    fn free_resources(&self, host: &str) -> Option<Claim> {
        let host = self.snapshot.host(host)?;
        Some(Claim {
            vcpus: host.free(0),
            memory_mib: host.free(1),
            disk_gib: host.free(2),
        })
    }

    /// After capacity was freed: Servers that wait for it and fit now are decided again; for the
    /// others the next report is written earlier.
    fn requeue_fitting(&mut self, effort: &mut Effort, now: Timestamp) {
        for key in std::mem::take(&mut self.to_check) {
            if !self.queue.is_waiting(&key) {
                continue;
            }
            if effort.is_spent(&key.0) {
                self.to_check.insert(key);
                continue;
            }
            let before = self.placer.work();
            // Whether a nomination is still of use is decided each time.
            if self.nominated.contains(&key) || self.would_fit(&key, now) {
                self.enqueue(&key);
            } else {
                self.queue.refresh_soon(&key);
            }
            effort.add(key.0, self.placer.work() - before);
        }
    }

    /// Whether a Server that waits would now be placed, or its decision is needed for another
    /// reason.
    pub(crate) fn would_fit(&mut self, key: &Key, now: Timestamp) -> bool {
        let Some(server) = self.servers.get(key).cloned() else {
            return false;
        };
        let Ok(request) = self.request(&server, now) else {
            return true;
        };
        if preemption_of(&server).is_some() {
            return self.fits_again(key, &server);
        }
        self.orphan(key).is_some() || self.placer.fits(&self.snapshot, &request)
    }

    fn decide_one(
        &mut self,
        key: Key,
        server: Arc<Server>,
        request: Result<Request, Unresolved>,
        writes: &mut Vec<StatusWrite>,
        now: Timestamp,
    ) {
        if preemption_of(&server).is_some() && self.current_refusal(&server).is_none() {
            writes.extend(self.resume(key, server, now));
            return;
        }
        let no = |reason, message| Observation::no(ConditionType::Scheduled, reason, message);
        let request = match request {
            Ok(request) => request,
            Err(Unresolved::ReportedByManager) => {
                self.queue.wait(key, WaitReason::Unresolved, now);
                return;
            }
            Err(Unresolved::Unreported(reason, message)) => {
                let observation = no(reason, message);
                writes.extend(self.report_unscheduled(
                    key,
                    server,
                    observation,
                    None,
                    WaitReason::Unresolved,
                    now,
                ));
                return;
            }
        };
        if let Some(refusal) = self.current_refusal(&server) {
            writes.extend(self.withdraw_placement(key, server, refusal, &request, now));
            return;
        }
        // Its own nomination must not count against it.
        self.release_nomination(&server);
        // A Server that was created again while its VM still runs, or that has lost its placement,
        // stays where the VM is, whatever the filters say.
        let orphan = self.orphan(&key);
        let bound = self.bound_by_instance(&server);
        let decision = match bound.as_ref().or(orphan.as_ref()) {
            Some((host, _)) => Ok(host.clone()),
            None => match self.placer.place(&self.snapshot, &request) {
                Ok(host) => Ok(host.to_owned()),
                Err(why) => self.place_before_nominated(&request).ok_or(why),
            },
        };
        let host = match decision {
            Ok(host) => host,
            Err(why) => {
                let why = why.to_string();
                writes.extend(self.handle_unschedulable(&key, server, &request, &why, now));
                return;
            }
        };
        let epoch = match bound {
            Some((_, epoch)) => epoch,
            None => self.epoch(&server, orphan.as_ref().map(|(_, epoch)| *epoch)),
        };
        writes.push(self.bind(key, server, &request, host, epoch, now));
    }

    /// Places a Server on a host; assumed in the ledger from now on.
    pub(crate) fn bind(
        &mut self,
        key: Key,
        server: Arc<Server>,
        request: &Request,
        host: String,
        epoch: i64,
        now: Timestamp,
    ) -> StatusWrite {
        let resources = &request.requirements.resources;
        let there = self.snapshot.host(&host);
        let placement = Placement {
            epoch,
            time: Some(Time(now)),
            claim: resources.claim,
            host,
            ..there.map_or_else(Placement::default, |h| devices::placement(h, resources))
        };
        let message = format!("placed on {}", placement.host);
        self.write_placement(key, server, placement, message, Decision::Placed, now)
    }

    /// Writes a placement; assumed in the ledger from now on.
    pub(crate) fn write_placement(
        &mut self,
        key: Key,
        server: Arc<Server>,
        placement: Placement,
        message: String,
        decision: Decision,
        now: Timestamp,
    ) -> StatusWrite {
        let allocation = allocation(&server, &placement, &self.catalogue);
        self.snapshot
            .allocate(&server.uid().unwrap_or_default(), allocation);
        let observation = Observation::yes(ConditionType::Scheduled, Reason::Scheduled, message);
        let (conditions, _) = conditions(&server, observation, now);
        let status = SchedulerStatus {
            placement: Some(placement),
            refusals: refusals(&server),
            conditions,
            ..SchedulerStatus::default()
        };
        self.start_write(key, server, status, decision)
    }

    /// Withdraws a placement that the host has refused, if another host fits. Otherwise the
    /// Server stays, because the host may build it once it has capacity.
    fn withdraw_placement(
        &mut self,
        key: Key,
        server: Arc<Server>,
        refusal: Refusal,
        request: &Request,
        now: Timestamp,
    ) -> Option<StatusWrite> {
        if !self.placer.fits(&self.snapshot, request) {
            self.queue.wait(key, WaitReason::NoHostFits, now);
            return None;
        }
        let message = format!(
            "Host {} refused it; it is placed elsewhere once its Instance there is deleted",
            refusal.name
        );
        let observation = Observation::no(ConditionType::Scheduled, Reason::HostRefused, message);
        let (conditions, transition) = conditions(&server, observation, now);
        let mut refusals = refusals(&server);
        refusals.retain(|r| r.name != refusal.name);
        if refusals.len() >= MAX_REFUSALS {
            refusals.remove(0);
        }
        // As the host will be without this Server.
        self.snapshot.release(&server.uid().unwrap_or_default());
        let left = self.free_resources(&refusal.name);
        self.account(&key);
        let host = self.hosts.get(&refusal.name);
        refusals.push(Refusal {
            time: Some(Time(now)),
            boot_id: host.and_then(|h| h.status.as_ref()?.boot_id.clone()),
            left,
            ..refusal
        });
        let status = SchedulerStatus {
            refusals,
            conditions,
            ..SchedulerStatus::default()
        };
        Some(self.start_write(key, server, status, Decision::Unscheduled { transition }))
    }

    /// Reports why a Server is not placed and where it is nominated, unless its status says so
    /// already or the last report is too recent.
    pub(crate) fn report_unscheduled(
        &mut self,
        key: Key,
        server: Arc<Server>,
        observation: Observation,
        nomination: Option<Nomination>,
        why: WaitReason,
        now: Timestamp,
    ) -> Option<StatusWrite> {
        let (conditions, transition) = conditions(&server, observation, now);
        let before = scheduled_condition(&server);
        let status = server.status.as_ref();
        let same_nomination = nomination == status.and_then(|s| s.nomination.clone());
        if same_nomination && conditions.first() == before {
            self.queue.wait(key, why, now);
            return None;
        }
        let next_report = self.queue.next_report(&key);
        if let Some(next) = next_report.filter(|next| same_nomination && !transition && *next > now)
        {
            self.queue.wait_until(key, why, now, next);
            return None;
        }
        self.queue.wait(key.clone(), why, now);
        let status = SchedulerStatus {
            refusals: refusals(&server),
            nomination,
            conditions,
            ..SchedulerStatus::default()
        };
        Some(self.start_write(key, server, status, Decision::Unscheduled { transition }))
    }

    pub(crate) fn start_write(
        &mut self,
        key: Key,
        server: Arc<Server>,
        status: SchedulerStatus,
        decision: Decision,
    ) -> StatusWrite {
        let writing = InFlight {
            uid: server.uid().unwrap_or_default(),
            version: server.resource_version().unwrap_or_default(),
            decision,
            nomination: status.nomination.clone(),
            conflict: false,
        };
        self.in_flight.insert(key.clone(), writing);
        StatusWrite {
            key,
            server,
            status,
            decision,
        }
    }
}

pub(crate) fn refusals(server: &Server) -> Vec<Refusal> {
    let status = server.status.as_ref();
    status.map(|s| s.refusals.clone()).unwrap_or_default()
}

/// The new condition, and whether its status or reason differs from the old one.
pub(crate) fn conditions(
    server: &Server,
    observation: Observation,
    now: Timestamp,
) -> (Vec<Condition>, bool) {
    let status = server.status.as_ref();
    let old = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let new = conditions::merge(old, [observation], server.metadata.generation, now);
    let before = scheduled_condition(server);
    let same = |c: &Condition| before.is_some_and(|b| b.status == c.status && b.reason == c.reason);
    let transition = !new.iter().all(same);
    (new, transition)
}
