//! Nominations: capacity of one Host that is reserved for a Server that waits, as Kubernetes'
//! `nominatedNodeName`. In the ledger a nomination counts like a placed Server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::{COMPUTE_FILTERS, DISK_FILTER};
use crate::objects::catalogue::Key;
use crate::objects::resolve::size;
use crate::placement::facts::{Allocation, ResourceRequest};
use crate::placement::request::Request;
use crate::state::{Decision, State, scheduled_condition};
use pileus_api::Server;
use pileus_api::server::{Nomination, NominationPurpose};

/// How long a Server waits before it is nominated.
const NOMINATION_DELAY: SignedDuration = SignedDuration::from_mins(5);
/// How long a nomination of a Server that waits lasts.
pub(super) const NOMINATION_TIMEOUT: SignedDuration = SignedDuration::from_mins(10);
/// Time without any nomination after one that did not help, so that a few Servers that are
/// too big for every Host do not block the capacity for all others in turn.
const NOMINATION_INTERVAL: SignedDuration = SignedDuration::from_mins(20);
/// Time before the same Server is nominated again after a nomination that did not help.
const SERVER_NOMINATION_INTERVAL: SignedDuration = SignedDuration::from_mins(60);

/// Key of a Server's nomination in the ledger. It differs from the Server's uid, because the
/// Server itself is not on the Host.
pub(crate) fn nomination_key(uid: &str) -> String {
    format!("nomination of {uid}")
}

pub(super) fn nomination_of(server: &Server) -> Option<&Nomination> {
    server.status.as_ref()?.nomination.as_ref()
}

impl State {
    /// Updates the ledger entry of a Server's nomination from the Server's latest version.
    pub(crate) fn account_nomination(&mut self, key: &Key) {
        let Some(server) = self.servers.get(key) else {
            return;
        };
        let in_flight = self.in_flight.get(key);
        let ledger_key = nomination_key(&server.uid().unwrap_or_default());
        let being_placed = in_flight.is_some_and(|w| w.decision == Decision::Placed);
        let placed = server
            .status
            .as_ref()
            .is_some_and(|s| s.placement.is_some());
        let waits = !being_placed && !placed && server.metadata.deletion_timestamp.is_none();
        // A nomination counts from the moment that its write starts.
        let written = in_flight.and_then(|w| w.nomination.as_ref());
        let nomination = written.or(nomination_of(server)).filter(|_| waits);
        let allocation = nomination.and_then(|n| self.nominated_allocation(server, &n.host));
        if let Some(allocation) = allocation {
            self.nominated.insert(key.clone());
            self.capacity_freed |= self.snapshot.allocate(&ledger_key, allocation);
        } else {
            self.nominated.remove(key);
            self.capacity_freed |= self.snapshot.release(&ledger_key);
        }
    }

    pub(super) fn account_nominations(&mut self, keys: &[Key]) {
        for key in keys {
            self.account_nomination(key);
        }
    }

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

    /// Removes a Server's nomination from the ledger while the Server itself is decided.
    pub(crate) fn release_nomination(&mut self, server: &Server) {
        self.snapshot
            .release(&nomination_key(&server.uid().unwrap_or_default()));
    }

    /// Removes the nominations of Servers of lower priority from the ledger; returns these
    /// Servers.
    pub(super) fn release_nominations_below(&mut self, priority: i32) -> Vec<Key> {
        let mut released = Vec::new();
        for key in &self.nominated {
            let Some(server) = self.servers.get(key) else {
                continue;
            };
            if self.catalogue.priority(server).value < priority {
                let uid = server.uid().unwrap_or_default();
                self.snapshot.release(&nomination_key(&uid));
                released.push(key.clone());
            }
        }
        released
    }

    /// The host for a Server that fits only if nominations of lower priority are ignored.
    pub(crate) fn place_before_nominated(&mut self, request: &Request) -> Option<String> {
        let released = self.release_nominations_below(request.priority.value);
        if released.is_empty() {
            return None;
        }
        let found = self.placer.place(&self.snapshot, request).ok();
        let found = found.map(ToOwned::to_owned);
        self.account_nominations(&released);
        found
    }

    /// The nomination of a Server that has waited long: its current one while that lasts, or a
    /// new one if no other Server has one.
    pub(super) fn waiting_nomination(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Nomination> {
        let [cores, memory] = COMPUTE_FILTERS;
        let ignored = [cores, memory, DISK_FILTER];
        let hosts = self.placer.fits_ignoring(&self.snapshot, request, &ignored);
        let current = nomination_of(server).filter(|n| n.purpose == NominationPurpose::Waiting);
        if let Some(current) = current {
            let since = current.time.as_ref().map_or(now, |t| t.0);
            let mut names = hosts.iter().map(|s| self.snapshot.host_at(*s).name());
            if now < since + NOMINATION_TIMEOUT && names.any(|name| name == current.host) {
                return Some(current.clone());
            }
            self.nominate_again_after
                .insert(key.clone(), now + SERVER_NOMINATION_INTERVAL);
            self.next_nomination_after = Some(now + NOMINATION_INTERVAL);
        }
        let unscheduled = scheduled_condition(server).filter(|c| c.status == "False");
        let waited_long =
            unscheduled.is_some_and(|c| now >= c.last_transition_time.0 + NOMINATION_DELAY);
        let not_before = self.nominate_again_after.get(key).into_iter();
        let not_before = not_before.chain(&self.next_nomination_after).max();
        let too_early = not_before.is_some_and(|time| now < *time);
        if !waited_long || too_early || self.has_waiting_nomination() {
            return None;
        }
        let nearest = hosts.into_iter().filter_map(|slot| {
            let shortage = self.relative_shortage(slot, request)?;
            Some((shortage, self.snapshot.host_at(slot).name()))
        });
        let (_, host) = nearest.min()?;
        Some(Nomination {
            host: host.to_owned(),
            purpose: NominationPurpose::Waiting,
            time: Some(Time(now)),
        })
    }

    fn has_waiting_nomination(&self) -> bool {
        let waiting = |n: &Nomination| n.purpose == NominationPurpose::Waiting;
        let mut nominated = self
            .nominated
            .iter()
            .filter_map(|key| self.servers.get(key));
        let written = nominated.any(|s| nomination_of(s).is_some_and(waiting));
        // One that is still being written counts as well.
        written || self.in_flight.values().any(|w| w.nomination.is_some())
    }

    /// The largest shortage of vCPUs, memory or disk on a host, in thousandths of what the
    /// Server needs; `None` if even the empty host would be too small.
    fn relative_shortage(&self, slot: usize, request: &Request) -> Option<i64> {
        let host = self.snapshot.host_at(slot);
        let claim = request.requirements.resources.claim;
        let needs = [claim.vcpus, claim.memory_mib, claim.disk_gib];
        let mut largest = 0;
        for (part, need) in needs.into_iter().enumerate().filter(|(_, need)| *need > 0) {
            if need > host.capacity(part).min(host.limit(part)) {
                return None;
            }
            let shortage = need.saturating_sub(host.free(part)).max(0);
            largest = largest.max(shortage.saturating_mul(1000) / need);
        }
        Some(largest)
    }
}
