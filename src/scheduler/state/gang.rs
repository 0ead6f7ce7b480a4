//! Gang scheduling: ServerGroups with `minMembers`, whose members are placed all or nothing.
//!
//! All members are decided together and only if there is capacity for all of them. Their
//! placements are then written one by one, because Kubernetes has no write of several objects.
//! If one write conflicts, the others stay: the conflicting member's allocation is kept in the
//! ledger until its newer version arrives, and it is decided before all other Servers, whatever
//! their priority. So no other Server gets the capacity in between, and the gang is completed.
//! After a restart the same holds, because the placements show which gangs are started.
//! A written placement is never withdrawn for the sake of the gang, because an Instance may
//! have been created from it already and its VM may run. A gang therefore stays incomplete only
//! if a host fails, or a member is changed or deleted, in that moment; its members report it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::objects::resolve::{allocation, group_key};
use crate::placement::devices;
use crate::placement::request::Request;
use crate::state::queue::WaitReason;
use crate::state::{State, StatusWrite, scheduled_condition};
use pileus_api::conditions::{ConditionType, Observation};
use pileus_api::{Reason, Server};

/// Gangs that could not be placed in this pass, and why; each is tried once in a pass.
pub(crate) type GangFailures = BTreeMap<Key, (Reason, String)>;

impl State {
    /// Whether the Server belongs to a gang of which fewer than `minMembers` are placed.
    pub(crate) fn is_in_incomplete_gang(&self, request: &Request) -> bool {
        let Some(group) = &request.group else {
            return false;
        };
        self.placed(&group.id) < group.min_members
    }

    /// Whether the Server belongs to such a gang, and some of its members are placed.
    pub(crate) fn is_gang_started(&self, request: &Request) -> bool {
        let group = request.group.as_ref();
        self.is_in_incomplete_gang(request) && group.is_some_and(|g| self.placed(&g.id) > 0)
    }

    /// How many members of a group are placed.
    fn placed(&self, group: &str) -> u32 {
        let members = self.snapshot.members(group).iter();
        members.map(|(_, n)| n).sum()
    }

    /// Decides the whole gang of a Server.
    pub(crate) fn decide_gang(
        &mut self,
        key: &Key,
        server: &Arc<Server>,
        request: &Request,
        failures: &mut GangFailures,
        writes: &mut Vec<StatusWrite>,
        now: Timestamp,
    ) {
        let Some(group) = group_key(server) else {
            return;
        };
        if !failures.contains_key(&group) {
            match self.place_gang(&group, request, now) {
                Ok(placed) => {
                    writes.extend(placed);
                    return;
                }
                Err(why) => {
                    if why.0 == Reason::NoHostFits {
                        self.requeue_outdated_members(&group);
                    }
                    failures.insert(group.clone(), why);
                }
            }
        }
        let Some((reason, message)) = failures.get(&group).cloned() else {
            return;
        };
        let observation = Observation::no(ConditionType::Scheduled, reason, message);
        let wait = if reason == Reason::GroupIncomplete {
            WaitReason::Unresolved
        } else {
            WaitReason::NoHostFits
        };
        writes.extend(self.report_unscheduled(
            key.clone(),
            server.clone(),
            observation,
            None,
            wait,
            now,
        ));
    }

    /// Decides those members again whose condition still says that members are missing.
    fn requeue_outdated_members(&mut self, group: &Key) {
        let outdated = |server: &Server| {
            let reason = scheduled_condition(server).map(|c| c.reason.as_str());
            reason == Some(Reason::GroupIncomplete.as_str())
        };
        let all = self.servers.iter();
        let some = all.filter(|(_, s)| group_key(s).as_ref() == Some(group) && outdated(s));
        for key in some.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            if self.queue.is_waiting(&key) {
                self.enqueue(&key);
            }
        }
    }

    fn place_gang(
        &mut self,
        group: &Key,
        request: &Request,
        now: Timestamp,
    ) -> Result<Vec<StatusWrite>, (Reason, String)> {
        let requested = request.group.as_ref();
        let (id, least) = requested.map_or(("", 0), |g| (g.id.as_str(), g.min_members));
        let placed = self.placed(id);
        let candidates = self.servers.iter().filter(|(key, server)| {
            group_key(server).as_ref() == Some(group)
                && self.needs_placement(key)
                && self.is_on_no_host(key, server)
                && !self.is_in_flight(key)
        });
        let mut members = Vec::new();
        for (key, server) in candidates {
            if let Ok(request) = self.request(server, now) {
                members.push((key.clone(), server.clone(), request));
            }
        }
        let there = placed.saturating_add(u32::try_from(members.len()).unwrap_or(u32::MAX));
        if there < least {
            let message = format!(
                "ServerGroup {} is placed all or nothing: {there} of {least} members exist and can be \
                 placed",
                group.1
            );
            return Err((Reason::GroupIncomplete, message));
        }
        // The biggest first, because small ones fit more easily into what is left.
        members.sort_by_key(|(key, _, r)| {
            let claim = r.requirements.resources.claim;
            (Reverse((claim.memory_mib, claim.vcpus)), key.clone())
        });
        let mut hosts = Vec::new();
        let mut why = None;
        for (key, server, request) in &members {
            match self.placer.place(&self.snapshot, request) {
                Ok(host) => {
                    let host = host.to_owned();
                    let resources = &request.requirements.resources;
                    let there = self.snapshot.host(&host);
                    // With NUMA nodes and devices, so that the next member does not get the same.
                    let placement = there.map(|h| devices::placement(h, resources));
                    let placement = placement.unwrap_or_default();
                    let allocation = allocation(server, &placement, &self.catalogue);
                    self.snapshot
                        .allocate(&server.uid().unwrap_or_default(), allocation);
                    hosts.push(host);
                }
                Err(explanation) => {
                    let started = if placed > 0 {
                        format!("{placed} of its members are placed, and ")
                    } else {
                        String::new()
                    };
                    why = Some(format!(
                        "ServerGroup {} is placed all or nothing; {started}after placing {} of the others \
                         {} does not fit: {explanation}",
                        group.1,
                        hosts.len(),
                        key.1
                    ));
                    break;
                }
            }
        }
        // The trial allocations are replaced by those of the placements.
        for (_, server, _) in members.iter().take(hosts.len()) {
            self.snapshot.release(&server.uid().unwrap_or_default());
        }
        if let Some(why) = why {
            return Err((Reason::NoHostFits, why));
        }
        let mut writes = Vec::new();
        for ((key, server, request), host) in members.into_iter().zip(hosts) {
            let epoch = self.epoch(&server, None);
            self.queue.remove(&key);
            writes.push(self.bind(key, server, &request, host, epoch, now));
        }
        Ok(writes)
    }
}

#[cfg(test)]
#[path = "gang_tests.rs"]
mod tests;
