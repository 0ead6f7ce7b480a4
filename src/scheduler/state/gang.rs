//! All or nothing: ServerGroups whose members are placed together or not at all.
//!
//! They are decided together, for room that is there for all of them, and then bound one by
//! one, because Kubernetes writes one object at a time. A write that meets a newer version of
//! its Server leaves the rest of the group bound. Then the claim stays in the ledger until the
//! newer version is here, and that is decided before all else, whatever has a higher
//! priority: so nobody gets the room in between, and the group is completed. The same holds
//! after a restart, since who has begun can be seen from the placements. What is bound is
//! never taken back for the group's sake, because the manager may have made an Instance of
//! it, and an Instance that nobody sees may run. So a group stays in part only while a host
//! that was there for it has failed meanwhile, or when somebody has changed or deleted a
//! member in that moment; and then its members say so.

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

/// Why groups could not be placed, of those that were tried: asked once in each pass.
pub(crate) type GangFailures = BTreeMap<Key, (Reason, String)>;

impl State {
    /// Whether the Server's group is placed all or nothing, and not enough of it is yet.
    pub(crate) fn is_in_incomplete_gang(&self, request: &Request) -> bool {
        let Some(group) = &request.group else {
            return false;
        };
        self.placed(&group.id) < group.min_members
    }

    /// Whether the Server's group is placed all or nothing, and some of it is.
    pub(crate) fn is_gang_started(&self, request: &Request) -> bool {
        let group = request.group.as_ref();
        self.is_in_incomplete_gang(request) && group.is_some_and(|g| self.placed(&g.id) > 0)
    }

    /// How many members of a group have a place.
    fn placed(&self, group: &str) -> u32 {
        let members = self.snapshot.members(group).iter();
        members.map(|(_, n)| n).sum()
    }

    /// Decides for a Server whose group is placed all or nothing: for all of the group.
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
        let seen = Observation::no(ConditionType::Scheduled, reason, message);
        let wait = if reason == Reason::GroupIncomplete {
            WaitReason::Unresolved
        } else {
            WaitReason::NoHostFits
        };
        writes.extend(self.report_unscheduled(key.clone(), server.clone(), seen, None, wait, now));
    }

    /// Members that were told of others to come are told what there is in the way now.
    fn requeue_outdated_members(&mut self, group: &Key) {
        let outdated = |server: &Server| {
            let said = scheduled_condition(server).map(|c| c.reason.as_str());
            said == Some(Reason::GroupIncomplete.as_str())
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
        let asked = request.group.as_ref();
        let (id, least) = asked.map_or(("", 0), |g| (g.id.as_str(), g.min_members));
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
                "ServerGroup {} is placed all or nothing: {there} of {least} members are there \
                 and could be placed",
                group.1
            );
            return Err((Reason::GroupIncomplete, message));
        }
        // The biggest first: whatever is small fits beside them more easily.
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
                    // With nodes and devices: the next one must not be tried on the same.
                    let placement = there.map(|h| devices::placement(h, resources));
                    let placement = placement.unwrap_or_default();
                    let held = allocation(server, &placement, &self.catalogue);
                    self.snapshot
                        .allocate(&server.uid().unwrap_or_default(), held);
                    hosts.push(host);
                }
                Err(explanation) => {
                    let begun = if placed > 0 {
                        format!("{placed} of its members are placed, and ")
                    } else {
                        String::new()
                    };
                    why = Some(format!(
                        "ServerGroup {} is placed all or nothing; {begun}beside {} of the rest \
                         {} does not fit: {explanation}",
                        group.1,
                        hosts.len(),
                        key.1
                    ));
                    break;
                }
            }
        }
        // What was tried is entered again by the binding itself.
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
