//! What is done for a Server that fits nowhere: others are stopped for it, or what others free
//! is kept for it.
//!
//! ```text
//!             nomination written ──> room is kept in the ledger ──> it fits: placed
//!   no host ─┤
//!             preemption written to each victim ──> its manager and host stop it ──> its host
//!             says so: processors and memory leave the ledger, disk and place stay ──> room
//!             again: preemption taken back, it is started
//! ```
//! All of it stands in status, so that another scheduler goes on where one ended: what is kept
//! is derived from nominations, and what is free from what hosts say. A victim's write may fail
//! where the nomination's does not, or the other way round: then the nominated Server chooses
//! again, and a Server that was stopped in vain is started again by the same rule as any.

mod victims;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::objects::resolve::size;
use crate::placement::facts::{Allocation, ResourceRequest};
use crate::placement::request::{Request, mix};
use crate::state::decide::{conditions, refusals};
use crate::state::instances::ObservedInstance;
use crate::state::queue::WaitReason;
use crate::state::{
    Decision, SchedulerStatus, State, StatusWrite, preemption_of, scheduled_condition,
};
use pileus_api::conditions::{ConditionType, Observation};
use pileus_api::scheduler_policy::{PreemptionPolicy, WaitingPolicy};
use pileus_api::server::{Nomination, NominationPurpose, Preemption, RunState};
use pileus_api::{Reason, Server};
use victims::{ComputeResources, PotentialVictim, cost, victims};

/// How long a Server waits before what is free is kept for it.
const NOMINATION_DELAY: SignedDuration = SignedDuration::from_mins(5);
/// How long what is free is kept.
const NOMINATION_TIMEOUT: SignedDuration = SignedDuration::from_mins(10);
/// How long nothing is kept for anybody when that was in vain: so that those that are big
/// and hopeless do not keep it from the small ones in turn.
const NOMINATION_INTERVAL: SignedDuration = SignedDuration::from_mins(20);
/// How long others may have their turn when one was in vain.
const SERVER_NOMINATION_INTERVAL: SignedDuration = SignedDuration::from_mins(60);
/// How long hosts may take to stop others, beside the time that their guests have for it.
const PREEMPTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(5);
/// Filters that ask for processors and memory, in this order.
const COMPUTE: [&str; 2] = ["CoreFilter", "RamFilter"];
/// The one that asks for disk.
const DISK: &str = "DiskFilter";

/// What the ledger calls the room that is kept for a Server: not its own name, since it is not
/// there.
pub(crate) fn nomination_key(uid: &str) -> String {
    format!("kept for {uid}")
}

/// Servers on one host, for one that is to come.
#[derive(Default)]
struct HostCandidate {
    /// What those that are being stopped will have given back.
    coming: ComputeResources,
    /// Seconds that their guests have for it at most.
    patience: i64,
    /// Those that may be stopped too.
    potential_victims: Vec<PotentialVictim>,
}

/// What is chosen for a Server that fits nowhere.
struct Nominated {
    nomination: Nomination,
    victims: Vec<Key>,
}

fn nomination_of(server: &Server) -> Option<&Nomination> {
    server.status.as_ref()?.nomination.as_ref()
}

impl State {
    /// Brings what is kept for a Server in line with what is known of it.
    pub(crate) fn account_nomination(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let writing = self.in_flight.get(key);
        let kept = nomination_key(&server.uid().unwrap_or_default());
        let bound = writing.is_some_and(|w| w.kind == Decision::Placed);
        let placed = server
            .status
            .as_ref()
            .is_some_and(|s| s.placement.is_some());
        let waits = !bound && !placed && server.metadata.deletion_timestamp.is_none();
        // What is being written is assumed.
        let written = writing.and_then(|w| w.nomination.as_ref());
        let wanted = written.or(nomination_of(server)).filter(|_| waits);
        let held = wanted.and_then(|n| self.nominated_allocation(server, &n.host));
        if let Some(held) = held {
            self.nominated.insert(key.clone());
            self.capacity_freed |= self.snapshot.allocate(&kept, held);
        } else {
            self.nominated.remove(key);
            self.capacity_freed |= self.snapshot.release(&kept);
        }
    }

    fn account_nominations(&mut self, keys: &[Key]) {
        for key in keys {
            self.account_nomination(key);
        }
    }

    /// What is kept for a Server on a host.
    fn nominated_allocation(&self, server: &Server, host: &str) -> Option<Allocation> {
        let (claim, _) = size(server, &self.catalogue)?;
        Some(Allocation {
            host: host.to_owned(),
            resources: ResourceRequest {
                claim,
                ..ResourceRequest::default()
            },
            ..Allocation::default()
        })
    }

    /// Takes what is kept for a Server out of the ledger, for a decision on itself.
    pub(crate) fn release_nomination(&mut self, server: &Server) {
        self.snapshot
            .release(&nomination_key(&server.uid().unwrap_or_default()));
    }

    /// Takes what is kept for Servers of lower priority out of the ledger; gives who they are.
    fn release_nominations_below(&mut self, priority: i32) -> Vec<Key> {
        let mut struck = Vec::new();
        for key in &self.nominated {
            let Some(server) = self.servers.get(key) else {
                continue;
            };
            if self.catalogue.priority(server).value < priority {
                let uid = server.uid().unwrap_or_default();
                self.snapshot.release(&nomination_key(&uid));
                struck.push(key.clone());
            }
        }
        struck
    }

    /// The host for a Server that fits only where room is kept for those of lower priority.
    pub(crate) fn place_before_nominated(&mut self, request: &Request) -> Option<String> {
        let struck = self.release_nominations_below(request.priority.value);
        if struck.is_empty() {
            return None;
        }
        let found = self.placer.place(&self.snapshot, request).ok();
        let found = found.map(ToOwned::to_owned);
        self.account_nominations(&struck);
        found
    }

    /// What is done for a Server that fits nowhere, and says so.
    pub(crate) fn handle_unschedulable(
        &mut self,
        key: &Key,
        server: Arc<Server>,
        request: &Request,
        why: &str,
        now: Timestamp,
    ) -> Vec<StatusWrite> {
        let struck = self.release_nominations_below(request.priority.value);
        let chance = if self.is_in_incomplete_gang(request) {
            None
        } else {
            self.nominate(key, &server, request, now)
        };
        self.account_nominations(&struck);
        let no = |reason, message| Observation::no(ConditionType::Scheduled, reason, message);
        let Some(Nominated {
            nomination,
            victims,
        }) = chance
        else {
            let seen = no(Reason::NoHostFits, why.to_owned());
            let told = self.report_unscheduled(
                key.clone(),
                server,
                seen,
                None,
                WaitReason::NoHostFits,
                now,
            );
            self.account_nomination(key);
            return told.into_iter().collect();
        };
        let host = &nomination.host;
        let seen = match nomination.purpose {
            NominationPurpose::Preemption => no(
                Reason::Preempting,
                format!(
                    "{why}. Servers of lower priority on {host} are being stopped to make room for it"
                ),
            ),
            NominationPurpose::Waiting => {
                let since = nomination.time.as_ref().map_or(now, |t| t.0);
                let until = since + NOMINATION_TIMEOUT;
                no(
                    Reason::NoHostFits,
                    format!("{why}. What is free on {host} is kept for it until {until:.0}"),
                )
            }
        };
        let uid = server.uid().unwrap_or_default();
        let nomination = Some(nomination);
        let told = self.report_unscheduled(
            key.clone(),
            server,
            seen,
            nomination,
            WaitReason::NoHostFits,
            now,
        );
        self.account_nomination(key);
        let mut writes: Vec<StatusWrite> = told.into_iter().collect();
        for victim in victims {
            writes.extend(self.start_preemption(&victim, &uid, request.priority.value, now));
        }
        writes
    }

    /// The best chance of a Server that fits nowhere: the one that it has, while that holds.
    fn nominate(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Nominated> {
        let policy = self.placer.policy();
        let preempts =
            policy.preemption == PreemptionPolicy::LowerPriority && request.priority.preempts;
        let had = nomination_of(server);
        if preempts {
            let mut on = self.host_candidates(request.priority.value);
            let mut hosts = self.placer.fits_ignoring(&self.snapshot, request, &COMPUTE);
            if let Some(had) = had.filter(|n| n.purpose == NominationPurpose::Preemption) {
                let patience = on.get(&had.host).map_or(0, |on| on.patience);
                let until = had.time.as_ref().map_or(now, |t| t.0) + PREEMPTION_TIMEOUT;
                if now >= until + SignedDuration::from_secs(patience) {
                    // It costs nothing more there, and comes to nothing.
                    hosts.retain(|slot| self.snapshot.host_at(*slot).name() != had.host);
                } else if self.is_still_sufficient(had, request, &hosts, &on) {
                    return Some(Nominated {
                        nomination: had.clone(),
                        victims: Vec::new(),
                    });
                }
            }
            if let Some((host, victims)) = self.cheapest_preemption(request, &hosts, &mut on) {
                return Some(Nominated {
                    nomination: Nomination {
                        host,
                        purpose: NominationPurpose::Preemption,
                        time: Some(Time(now)),
                    },
                    victims: victims.into_iter().map(|v| v.key).collect(),
                });
            }
        }
        if policy.waiting != WaitingPolicy::KeepRoom {
            return None;
        }
        let nomination = self.waiting_nomination(key, server, request, now)?;
        Some(Nominated {
            nomination,
            victims: Vec::new(),
        })
    }

    /// The host on which Servers would be stopped for `request`, and how many; `None` where
    /// none may be, or it would not help.
    pub(crate) fn would_preempt(&self, request: &Request) -> Option<(String, usize)> {
        let policy = self.placer.policy().preemption;
        if policy != PreemptionPolicy::LowerPriority || !request.priority.preempts {
            return None;
        }
        let mut on = self.host_candidates(request.priority.value);
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, &COMPUTE);
        let (host, victims) = self.cheapest_preemption(request, &hosts, &mut on)?;
        Some((host, victims.len()))
    }

    /// Whether what is being stopped on the nominated host will be enough.
    fn is_still_sufficient(
        &self,
        had: &Nomination,
        request: &Request,
        hosts: &[usize],
        on: &BTreeMap<String, HostCandidate>,
    ) -> bool {
        let mut slots = hosts.iter();
        let Some(slot) = slots.find(|s| self.snapshot.host_at(**s).name() == had.host) else {
            return false;
        };
        let Some(lacking) = self.shortage(*slot, request) else {
            return false;
        };
        let coming = on.get(&had.host).map_or([0; 2], |on| on.coming);
        (0..2).all(|part| lacking[part] <= coming[part])
    }

    /// The host where the least important are stopped, and whom.
    fn cheapest_preemption(
        &self,
        request: &Request,
        hosts: &[usize],
        on: &mut BTreeMap<String, HostCandidate>,
    ) -> Option<(String, Vec<PotentialVictim>)> {
        let mut best = None;
        for slot in hosts {
            let name = self.snapshot.host_at(*slot).name();
            let Some(lacking) = self.shortage(*slot, request) else {
                continue;
            };
            let HostCandidate {
                coming,
                potential_victims,
                ..
            } = on.remove(name).unwrap_or_default();
            let lacking = [0, 1].map(|part| lacking[part].saturating_sub(coming[part]));
            let Some(victims) = victims(lacking, potential_victims) else {
                continue;
            };
            let tie = mix(request.seed, self.snapshot.name_hash(*slot));
            let rank = (cost(&victims), tie, name);
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, victims));
            }
        }
        best.map(|((_, _, name), victims)| (name.to_owned(), victims))
    }

    /// What a Server lacks of a host's processors and memory; `None` when the host has not that
    /// much in all.
    fn shortage(&self, slot: usize, request: &Request) -> Option<ComputeResources> {
        let host = self.snapshot.host_at(slot);
        let claim = request.requirements.resources.claim;
        let mut lacking = [claim.vcpus, claim.memory_mib];
        for (part, lack) in lacking.iter_mut().enumerate() {
            if !self.placer.has_filter(COMPUTE[part]) {
                *lack = 0;
            } else if *lack > host.capacity(part).min(host.limit(part)) {
                return None;
            } else {
                *lack -= host.free(part);
            }
        }
        Some(lacking)
    }

    /// By host, who is being stopped and who may be for a Server of this priority. Not who is
    /// being made, moved or refused; nor who has NUMA nodes of its own, because what is tied to
    /// them cannot be given to others and had again.
    fn host_candidates(&self, priority: i32) -> BTreeMap<String, HostCandidate> {
        let mut hosts: BTreeMap<String, HostCandidate> = BTreeMap::new();
        for (key, server) in &self.servers {
            let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) else {
                continue;
            };
            let uid = server.uid().unwrap_or_default();
            let own = self
                .instances
                .of_server(&uid)
                .find(|i| i.realizes(placement));
            let host = self.snapshot.host(&placement.host);
            let overhead = host.map_or(0, crate::placement::snapshot::Host::overhead);
            let memory = placement.claim.memory_mib.saturating_add(overhead);
            let room = [placement.claim.vcpus, memory];
            let writing = self.in_flight.get(key).map(|w| w.kind);
            let stops = match writing {
                Some(kind) => kind == Decision::Preempted,
                None => preemption_of(server).is_some(),
            };
            if stops {
                if own.is_some_and(ObservedInstance::stopped_for_preemption) && writing.is_none() {
                    continue;
                }
                let on = hosts.entry(placement.host.clone()).or_default();
                on.coming = [0, 1].map(|part| on.coming[part].saturating_add(room[part]));
                let patience = i64::from(server.spec.shutdown_timeout_seconds);
                on.patience = on.patience.max(patience);
                continue;
            }
            let its = self.catalogue.priority(server).value;
            if its >= priority
                || writing.is_some()
                || server.metadata.deletion_timestamp.is_some()
                || !own.is_some_and(ObservedInstance::is_realized)
                || self
                    .snapshot
                    .resources_of(&uid)
                    .is_none_or(|s| s.numa.is_some() || !s.devices.is_empty())
            {
                continue;
            }
            let on = hosts.entry(placement.host.clone()).or_default();
            on.potential_victims.push(PotentialVictim {
                key: key.clone(),
                priority: its,
                runs: server.spec.run_state == RunState::Running,
                created: server.metadata.creation_timestamp.clone(),
                room,
            });
        }
        hosts
    }

    /// The turn of a Server that has waited long: the one that it has, or a new one when
    /// nobody else has any.
    fn waiting_nomination(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Nomination> {
        let [cores, memory] = COMPUTE;
        let room = [cores, memory, DISK];
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, &room);
        let had = nomination_of(server).filter(|n| n.purpose == NominationPurpose::Waiting);
        if let Some(had) = had {
            let since = had.time.as_ref().map_or(now, |t| t.0);
            let mut names = hosts.iter().map(|s| self.snapshot.host_at(*s).name());
            if now < since + NOMINATION_TIMEOUT && names.any(|name| name == had.host) {
                return Some(had.clone());
            }
            self.nominate_again_after
                .insert(key.clone(), now + SERVER_NOMINATION_INTERVAL);
            self.next_nomination_after = Some(now + NOMINATION_INTERVAL);
        }
        let told = scheduled_condition(server).filter(|c| c.status == "False");
        let waits = told.is_some_and(|c| now >= c.last_transition_time.0 + NOMINATION_DELAY);
        let rests = self
            .nominate_again_after
            .get(key)
            .into_iter()
            .chain(&self.next_nomination_after);
        let rests = rests.max().is_some_and(|until| now < *until);
        if !waits || rests || self.has_waiting_nomination() {
            return None;
        }
        let nearest = hosts.into_iter().filter_map(|slot| {
            let gap = self.relative_shortage(slot, request)?;
            Some((gap, self.snapshot.host_at(slot).name()))
        });
        let (_, host) = nearest.min()?;
        Some(Nomination {
            host: host.to_owned(),
            purpose: NominationPurpose::Waiting,
            time: Some(Time(now)),
        })
    }

    fn has_waiting_nomination(&self) -> bool {
        let waits = |n: &Nomination| n.purpose == NominationPurpose::Waiting;
        let mut named = self
            .nominated
            .iter()
            .filter_map(|key| self.servers.get(key));
        // One whose nomination is still being written counts as well.
        let written = named.any(|s| nomination_of(s).is_some_and(waits));
        written || self.in_flight.values().any(|w| w.nomination.is_some())
    }

    /// How much of what a Server needs a host lacks, in thousandths, of what it lacks most;
    /// `None` when the host has not that much in all.
    fn relative_shortage(&self, slot: usize, request: &Request) -> Option<i64> {
        let host = self.snapshot.host_at(slot);
        let claim = request.requirements.resources.claim;
        let needs = [claim.vcpus, claim.memory_mib, claim.disk_gib];
        let mut most = 0;
        for (part, need) in needs.into_iter().enumerate().filter(|(_, need)| *need > 0) {
            if need > host.capacity(part).min(host.limit(part)) {
                return None;
            }
            let lack = need.saturating_sub(host.free(part)).max(0);
            most = most.max(lack.saturating_mul(1000) / need);
        }
        Some(most)
    }

    /// Stops a Server for another.
    fn start_preemption(
        &mut self,
        key: &Key,
        by: &str,
        priority: i32,
        now: Timestamp,
    ) -> Option<StatusWrite> {
        let server = self.servers.get(key)?.clone();
        let placement = server.status.as_ref()?.placement.clone()?;
        let message = format!(
            "stopped: a Server of priority {priority} has its place on {}, its own is {}. It is \
             started again when that Host has room for it",
            placement.host,
            self.catalogue.priority(&server).value
        );
        let seen = Observation::yes(ConditionType::Scheduled, Reason::Preempted, message);
        let (conditions, _) = conditions(&server, seen, now);
        let status = SchedulerStatus {
            placement: Some(placement),
            refusals: refusals(&server),
            preemption: Some(Preemption {
                by: by.to_owned(),
                priority,
                time: Some(Time(now)),
            }),
            nomination: None,
            conditions,
        };
        Some(self.start_write(key.clone(), server, status, Decision::Preempted))
    }

    /// Whether a Server that was stopped for another has its room again.
    pub(crate) fn fits_again(&mut self, key: &Key, server: &Server) -> bool {
        let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) else {
            return false;
        };
        // Its disk is there, and was counted all the time.
        self.snapshot.release(&server.uid().unwrap_or_default());
        let host = self.snapshot.host(&placement.host);
        let fits = host.is_some_and(|host| {
            let needs = [placement.claim.vcpus, placement.claim.memory_mib];
            let mut parts = needs.into_iter().enumerate();
            parts.all(|(part, need)| {
                !self.placer.has_filter(COMPUTE[part]) || need <= host.free(part)
            })
        });
        let capacity_freed = self.capacity_freed;
        self.account(key);
        self.capacity_freed = capacity_freed;
        fits
    }

    /// Starts a Server again that was stopped for another, if it has its room again.
    pub(crate) fn resume(
        &mut self,
        key: Key,
        server: Arc<Server>,
        now: Timestamp,
    ) -> Option<StatusWrite> {
        let placement = server.status.as_ref()?.placement.clone()?;
        if !self.fits_again(&key, &server) {
            self.queue.wait(key, WaitReason::NoHostFits, now);
            return None;
        }
        let message = format!("started again: {} has room for it", placement.host);
        Some(self.write_placement(key, server, placement, message, Decision::Resumed, now))
    }
}

#[cfg(test)]
mod tests;
