//! On which Host Servers are stopped, and which: kube-scheduler's preemption candidates.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::COMPUTE_FILTERS;
use super::victims::{ComputeResources, PotentialVictim, cost, select_victims};
use crate::placement::request::{Request, mix};
use crate::placement::snapshot::Host;
use crate::state::instances::ObservedInstance;
use crate::state::{Decision, State, preemption_of};
use pileus_api::scheduler_policy::PreemptionPolicy;
use pileus_api::server::{Nomination, RunState};

/// Servers of one host, as seen by a Server of higher priority.
#[derive(Default)]
pub(super) struct Candidate {
    /// What the Servers that are being stopped will release.
    pub(super) releasing: ComputeResources,
    /// The longest time that the guests being stopped have for it, in seconds.
    pub(super) shutdown_seconds: i64,
    /// Servers that may be stopped as well.
    pub(super) potential_victims: Vec<PotentialVictim>,
}

impl State {
    /// The host on which Servers would be stopped for `request`, and how many; `None` if none
    /// may be stopped or it would not help.
    pub(crate) fn would_preempt(&self, request: &Request) -> Option<(String, usize)> {
        let policy = self.placer.policy().preemption;
        if policy != PreemptionPolicy::LowerPriority || !request.priority.preempts {
            return None;
        }
        let mut candidates = self.candidates(request.priority.value);
        let ignored = &COMPUTE_FILTERS;
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, ignored);
        let (host, victims) = self.cheapest_preemption(request, &hosts, &mut candidates)?;
        Some((host, victims.len()))
    }

    /// Whether what is being stopped on the nominated host will be enough.
    pub(super) fn is_still_sufficient(
        &self,
        nomination: &Nomination,
        request: &Request,
        hosts: &[usize],
        candidates: &BTreeMap<String, Candidate>,
    ) -> bool {
        let host = &nomination.host;
        let mut slots = hosts.iter();
        let Some(slot) = slots.find(|s| self.snapshot.host_at(**s).name() == host) else {
            return false;
        };
        let Some(shortage) = self.shortage(*slot, request) else {
            return false;
        };
        let releasing = candidates.get(host).map_or([0; 2], |c| c.releasing);
        (0..2).all(|part| shortage[part] <= releasing[part])
    }

    /// The host on which stopping Servers costs least, and the Servers to stop there.
    pub(super) fn cheapest_preemption(
        &self,
        request: &Request,
        hosts: &[usize],
        candidates: &mut BTreeMap<String, Candidate>,
    ) -> Option<(String, Vec<PotentialVictim>)> {
        let mut best = None;
        for slot in hosts {
            let name = self.snapshot.host_at(*slot).name();
            let Some(shortage) = self.shortage(*slot, request) else {
                continue;
            };
            let Candidate {
                releasing,
                potential_victims,
                ..
            } = candidates.remove(name).unwrap_or_default();
            let missing = [0, 1].map(|part| shortage[part].saturating_sub(releasing[part]));
            let Some(victims) = select_victims(missing, potential_victims) else {
                continue;
            };
            let tie_break = mix(request.seed, self.snapshot.name_hash(*slot));
            let rank = (cost(&victims), tie_break, name);
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, victims));
            }
        }
        best.map(|((_, _, name), victims)| (name.to_owned(), victims))
    }

    /// How many vCPUs and how much memory a host lacks for a Server; `None` if even the empty
    /// host would be too small.
    fn shortage(&self, slot: usize, request: &Request) -> Option<ComputeResources> {
        let host = self.snapshot.host_at(slot);
        let claim = request.requirements.resources.claim;
        let mut shortage = [claim.vcpus, claim.memory_mib];
        for (part, amount) in shortage.iter_mut().enumerate() {
            if !self.placer.has_filter(COMPUTE_FILTERS[part]) {
                *amount = 0;
            } else if *amount > host.capacity(part).min(host.limit(part)) {
                return None;
            } else {
                *amount -= host.free(part);
            }
        }
        Some(shortage)
    }

    /// By host, the Servers that are being stopped and those that may be stopped for a Server
    /// of this priority. Servers that are being created, moved or were refused are left out;
    /// so are those with NUMA nodes or PCI devices of their own, because what is pinned to
    /// them cannot be given to another Server and taken back later.
    pub(super) fn candidates(&self, priority: i32) -> BTreeMap<String, Candidate> {
        let mut hosts: BTreeMap<String, Candidate> = BTreeMap::new();
        for (key, server) in &self.servers {
            let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) else {
                continue;
            };
            let uid = server.uid().unwrap_or_default();
            let mut instances = self.instances.of_server(&uid);
            let instance = instances.find(|i| i.realizes(placement));
            let host = self.snapshot.host(&placement.host);
            let overhead = host.map_or(0, Host::overhead);
            let memory = placement.claim.memory_mib.saturating_add(overhead);
            let compute = [placement.claim.vcpus, memory];
            let in_flight = self.in_flight.get(key).map(|w| w.decision);
            let is_victim = match in_flight {
                Some(decision) => decision == Decision::Preempted,
                None => preemption_of(server).is_some(),
            };
            if is_victim {
                let stopped = instance.is_some_and(ObservedInstance::is_stopped_for_preemption);
                if stopped && in_flight.is_none() {
                    continue;
                }
                let candidate = hosts.entry(placement.host.clone()).or_default();
                let releasing = &mut candidate.releasing;
                *releasing = [0, 1].map(|part| releasing[part].saturating_add(compute[part]));
                let seconds = i64::from(server.spec.shutdown_timeout_seconds);
                candidate.shutdown_seconds = candidate.shutdown_seconds.max(seconds);
                continue;
            }
            let own_priority = self.catalogue.priority(server).value;
            if own_priority >= priority
                || in_flight.is_some()
                || server.metadata.deletion_timestamp.is_some()
                || !instance.is_some_and(ObservedInstance::is_realized)
                || self
                    .snapshot
                    .resources_of(&uid)
                    .is_none_or(|r| r.numa.is_some() || !r.devices.is_empty())
            {
                continue;
            }
            let candidate = hosts.entry(placement.host.clone()).or_default();
            candidate.potential_victims.push(PotentialVictim {
                key: key.clone(),
                priority: own_priority,
                running: server.spec.run_state == RunState::Running,
                created: server.metadata.creation_timestamp.clone(),
                compute,
            });
        }
        hosts
    }
}
