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
use crate::state::instances::Known;
use crate::state::queue::Why;
use crate::state::{Kind, SchedulerStatus, State, Write, preemption, scheduled};
use pileus_api::conditions::{ConditionType, Observation};
use pileus_api::scheduler_policy::{PreemptionPolicy, WaitingPolicy};
use pileus_api::server::{Nomination, NominationPurpose, Preemption, RunState};
use pileus_api::{Reason, Server};
use victims::{Occupant, Room, cost, victims};

/// How long a Server waits before what is free is kept for it.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// How long what is free is kept.
const KEPT: SignedDuration = SignedDuration::from_mins(10);
/// How long nothing is kept for anybody when that was in vain: so that those that are big
/// and hopeless do not keep it from the small ones in turn.
const PAUSE: SignedDuration = SignedDuration::from_mins(20);
/// How long others may have their turn when one was in vain.
const REST: SignedDuration = SignedDuration::from_mins(60);
/// How long hosts may take to stop others, beside the time that their guests have for it.
const STOPPING: SignedDuration = SignedDuration::from_mins(5);
/// Filters that ask for processors and memory, in this order.
const COMPUTE: [&str; 2] = ["CoreFilter", "RamFilter"];
/// The one that asks for disk.
const DISK: &str = "DiskFilter";

/// What the ledger calls the room that is kept for a Server: not its own name, since it is not
/// there.
pub(crate) fn kept(uid: &str) -> String {
    format!("kept for {uid}")
}

/// Servers on one host, for one that is to come.
#[derive(Default)]
struct On {
    /// What those that are being stopped will have given back.
    coming: Room,
    /// Seconds that their guests have for it at most.
    patience: i64,
    /// Those that may be stopped too.
    occupants: Vec<Occupant>,
}

/// What is chosen for a Server that fits nowhere.
struct Chance {
    nomination: Nomination,
    victims: Vec<Key>,
}

fn nomination(server: &Server) -> Option<&Nomination> {
    server.status.as_ref()?.nomination.as_ref()
}

impl State {
    /// Brings what is kept for a Server in line with what is known of it.
    pub(crate) fn enter_kept(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let writing = self.writing.get(key);
        let kept = kept(&server.uid().unwrap_or_default());
        let bound = writing.is_some_and(|w| w.kind == Kind::Placed);
        let placed = server
            .status
            .as_ref()
            .is_some_and(|s| s.placement.is_some());
        let waits = !bound && !placed && server.metadata.deletion_timestamp.is_none();
        // What is being written is assumed.
        let written = writing.and_then(|w| w.nomination.as_ref());
        let wanted = written.or(nomination(server)).filter(|_| waits);
        let held = wanted.and_then(|n| self.keeping(server, &n.host));
        if let Some(held) = held {
            self.nominees.insert(key.clone());
            self.eased |= self.snapshot.allocate(&kept, held);
        } else {
            self.nominees.remove(key);
            self.eased |= self.snapshot.release(&kept);
        }
    }

    fn enter_all_kept(&mut self, keys: &[Key]) {
        for key in keys {
            self.enter_kept(key);
        }
    }

    /// What is kept for a Server on a host.
    fn keeping(&self, server: &Server, host: &str) -> Option<Allocation> {
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
    pub(crate) fn strike_kept(&mut self, server: &Server) {
        self.snapshot
            .release(&kept(&server.uid().unwrap_or_default()));
    }

    /// Takes what is kept for Servers of lower priority out of the ledger; gives who they are.
    fn strike_kept_below(&mut self, priority: i32) -> Vec<Key> {
        let mut struck = Vec::new();
        for key in &self.nominees {
            let Some(server) = self.servers.get(key) else {
                continue;
            };
            if self.catalogue.priority(server).value < priority {
                let uid = server.uid().unwrap_or_default();
                self.snapshot.release(&kept(&uid));
                struck.push(key.clone());
            }
        }
        struck
    }

    /// The host for a Server that fits only where room is kept for those of lower priority.
    pub(crate) fn place_before_others(&mut self, request: &Request) -> Option<String> {
        let struck = self.strike_kept_below(request.priority.value);
        if struck.is_empty() {
            return None;
        }
        let found = self.placer.place(&self.snapshot, request).ok();
        let found = found.map(ToOwned::to_owned);
        self.enter_all_kept(&struck);
        found
    }

    /// What is done for a Server that fits nowhere, and says so.
    pub(crate) fn make_room(
        &mut self,
        key: &Key,
        server: Arc<Server>,
        request: &Request,
        why: &str,
        now: Timestamp,
    ) -> Vec<Write> {
        let struck = self.strike_kept_below(request.priority.value);
        let chance = if self.is_of_gang(request) {
            None
        } else {
            self.chance(key, &server, request, now)
        };
        self.enter_all_kept(&struck);
        let no = |reason, message| Observation::no(ConditionType::Scheduled, reason, message);
        let Some(Chance {
            nomination,
            victims,
        }) = chance
        else {
            let seen = no(Reason::NoHostFits, why.to_owned());
            let told = self.tell(key.clone(), server, seen, None, Why::NoHostFits, now);
            self.enter_kept(key);
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
                let until = since + KEPT;
                no(
                    Reason::NoHostFits,
                    format!("{why}. What is free on {host} is kept for it until {until:.0}"),
                )
            }
        };
        let uid = server.uid().unwrap_or_default();
        let nomination = Some(nomination);
        let told = self.tell(key.clone(), server, seen, nomination, Why::NoHostFits, now);
        self.enter_kept(key);
        let mut writes: Vec<Write> = told.into_iter().collect();
        for victim in victims {
            writes.extend(self.preempt(&victim, &uid, request.priority.value, now));
        }
        writes
    }

    /// The best chance of a Server that fits nowhere: the one that it has, while that holds.
    fn chance(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Chance> {
        let policy = self.placer.policy();
        let preempts =
            policy.preemption == PreemptionPolicy::LowerPriority && request.priority.preempts;
        let had = nomination(server);
        if preempts {
            let mut on = self.on_hosts(request.priority.value);
            let mut hosts = self.placer.fits_ignoring(&self.snapshot, request, &COMPUTE);
            if let Some(had) = had.filter(|n| n.purpose == NominationPurpose::Preemption) {
                let patience = on.get(&had.host).map_or(0, |on| on.patience);
                let until = had.time.as_ref().map_or(now, |t| t.0) + STOPPING;
                if now >= until + SignedDuration::from_secs(patience) {
                    // It costs nothing more there, and comes to nothing.
                    hosts.retain(|slot| self.snapshot.host_at(*slot).name() != had.host);
                } else if self.still_makes_room(had, request, &hosts, &on) {
                    return Some(Chance {
                        nomination: had.clone(),
                        victims: Vec::new(),
                    });
                }
            }
            if let Some((host, victims)) = self.least_harm(request, &hosts, &mut on) {
                return Some(Chance {
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
        let nomination = self.turn(key, server, request, now)?;
        Some(Chance {
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
        let mut on = self.on_hosts(request.priority.value);
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, &COMPUTE);
        let (host, victims) = self.least_harm(request, &hosts, &mut on)?;
        Some((host, victims.len()))
    }

    /// Whether what is being stopped on the nominated host will be enough.
    fn still_makes_room(
        &self,
        had: &Nomination,
        request: &Request,
        hosts: &[usize],
        on: &BTreeMap<String, On>,
    ) -> bool {
        let mut slots = hosts.iter();
        let Some(slot) = slots.find(|s| self.snapshot.host_at(**s).name() == had.host) else {
            return false;
        };
        let Some(lacking) = self.lacking(*slot, request) else {
            return false;
        };
        let coming = on.get(&had.host).map_or([0; 2], |on| on.coming);
        (0..2).all(|part| lacking[part] <= coming[part])
    }

    /// The host where the least important are stopped, and whom.
    fn least_harm(
        &self,
        request: &Request,
        hosts: &[usize],
        on: &mut BTreeMap<String, On>,
    ) -> Option<(String, Vec<Occupant>)> {
        let mut best = None;
        for slot in hosts {
            let name = self.snapshot.host_at(*slot).name();
            let Some(lacking) = self.lacking(*slot, request) else {
                continue;
            };
            let On {
                coming, occupants, ..
            } = on.remove(name).unwrap_or_default();
            let lacking = [0, 1].map(|part| lacking[part].saturating_sub(coming[part]));
            let Some(victims) = victims(lacking, occupants) else {
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
    fn lacking(&self, slot: usize, request: &Request) -> Option<Room> {
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
    fn on_hosts(&self, priority: i32) -> BTreeMap<String, On> {
        let mut hosts: BTreeMap<String, On> = BTreeMap::new();
        for (key, server) in &self.servers {
            let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) else {
                continue;
            };
            let uid = server.uid().unwrap_or_default();
            let own = self.instances.of(&uid).find(|i| i.is_of(placement));
            let host = self.snapshot.host(&placement.host);
            let overhead = host.map_or(0, crate::placement::snapshot::Host::overhead);
            let memory = placement.claim.memory_mib.saturating_add(overhead);
            let room = [placement.claim.vcpus, memory];
            let writing = self.writing.get(key).map(|w| w.kind);
            let stops = match writing {
                Some(kind) => kind == Kind::Preempted,
                None => preemption(server).is_some(),
            };
            if stops {
                if own.is_some_and(Known::gave_way) && writing.is_none() {
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
                || !own.is_some_and(Known::is_realized)
                || self
                    .snapshot
                    .resources_of(&uid)
                    .is_none_or(|s| s.numa.is_some() || !s.devices.is_empty())
            {
                continue;
            }
            let on = hosts.entry(placement.host.clone()).or_default();
            on.occupants.push(Occupant {
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
    fn turn(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Nomination> {
        let [cores, memory] = COMPUTE;
        let room = [cores, memory, DISK];
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, &room);
        let had = nomination(server).filter(|n| n.purpose == NominationPurpose::Waiting);
        if let Some(had) = had {
            let since = had.time.as_ref().map_or(now, |t| t.0);
            let mut names = hosts.iter().map(|s| self.snapshot.host_at(*s).name());
            if now < since + KEPT && names.any(|name| name == had.host) {
                return Some(had.clone());
            }
            self.turns.insert(key.clone(), now + REST);
            self.next_turn = Some(now + PAUSE);
        }
        let told = scheduled(server).filter(|c| c.status == "False");
        let waits = told.is_some_and(|c| now >= c.last_transition_time.0 + PATIENCE);
        let rests = self.turns.get(key).into_iter().chain(&self.next_turn);
        let rests = rests.max().is_some_and(|until| now < *until);
        if !waits || rests || self.has_turn_been_given() {
            return None;
        }
        let nearest = hosts.into_iter().filter_map(|slot| {
            let gap = self.gap(slot, request)?;
            Some((gap, self.snapshot.host_at(slot).name()))
        });
        let (_, host) = nearest.min()?;
        Some(Nomination {
            host: host.to_owned(),
            purpose: NominationPurpose::Waiting,
            time: Some(Time(now)),
        })
    }

    fn has_turn_been_given(&self) -> bool {
        let waits = |n: &Nomination| n.purpose == NominationPurpose::Waiting;
        let mut named = self.nominees.iter().filter_map(|key| self.servers.get(key));
        // One whose nomination is still being written counts as well.
        let written = named.any(|s| nomination(s).is_some_and(waits));
        written || self.writing.values().any(|w| w.nomination.is_some())
    }

    /// How much of what a Server needs a host lacks, in thousandths, of what it lacks most;
    /// `None` when the host has not that much in all.
    fn gap(&self, slot: usize, request: &Request) -> Option<i64> {
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
    fn preempt(&mut self, key: &Key, by: &str, priority: i32, now: Timestamp) -> Option<Write> {
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
        Some(self.write(key.clone(), server, status, Kind::Preempted))
    }

    /// Whether a Server that was stopped for another has its room again.
    pub(crate) fn has_its_room_again(&mut self, key: &Key, server: &Server) -> bool {
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
        let eased = self.eased;
        self.enter(key);
        self.eased = eased;
        fits
    }

    /// Starts a Server again that was stopped for another, if it has its room again.
    pub(crate) fn resume(
        &mut self,
        key: Key,
        server: Arc<Server>,
        now: Timestamp,
    ) -> Option<Write> {
        let placement = server.status.as_ref()?.placement.clone()?;
        if !self.has_its_room_again(&key, &server) {
            self.queue.wait(key, Why::NoHostFits, now);
            return None;
        }
        let message = format!("started again: {} has room for it", placement.host);
        Some(self.write_place(key, server, placement, message, Kind::Resumed, now))
    }
}

#[cfg(test)]
mod tests;
