//! What is done for a Server that no host fits: Servers of lower priority are stopped
//! (preemption), or free capacity is reserved for it (nomination).
//!
//! ```text
//!               nomination written ──> capacity is reserved in the ledger ──> it fits: placed
//!   no host ──┤
//!               preemption written to each victim ──> manager and host stop it ──> the host
//!               reports it: vCPUs and memory leave the ledger, disk and placement stay ──>
//!               capacity is free again: preemption removed, the victim is started
//! ```
//! All of it is kept in status, so that the next leader continues where this one ended:
//! nominations give what is reserved, reports of the hosts give what is free. If only some of
//! the writes succeed, the nominated Server is decided again, and a victim that was stopped
//! without need is started again by the same rule as any other.
//!
//! | part | what it does |
//! |---|---|
//! | this file | chooses between preemption and nomination |
//! | `candidates` | the host on which stopping Servers costs least |
//! | `victims` | which Servers of one host are stopped; pure |
//! | `stop` | stops a victim, starts it again |
//! | `nominations` | capacity reserved for a Server that waits |

mod candidates;
mod nominations;
mod stop;
mod victims;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::objects::catalogue::Key;
use crate::placement::request::Request;
use crate::state::queue::WaitReason;
use crate::state::{State, StatusWrite};
use nominations::{NOMINATION_TIMEOUT, nomination_of};
use pileus_api::conditions::{ConditionType, Observation};
use pileus_api::scheduler_policy::{PreemptionPolicy, WaitingPolicy};
use pileus_api::server::{Nomination, NominationPurpose};
use pileus_api::{Reason, Server};

pub(crate) use nominations::nomination_key;

/// How long hosts may take to stop victims, beyond the shutdown time of the guests.
const PREEMPTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(5);
/// Filters for vCPUs and memory, in this order.
const COMPUTE_FILTERS: [&str; 2] = ["CoreFilter", "RamFilter"];
/// The filter for disk.
const DISK_FILTER: &str = "DiskFilter";

/// The host nominated for a Server, and the Servers to be stopped there.
struct Plan {
    nomination: Nomination,
    victims: Vec<Key>,
}

impl State {
    /// Handles a Server that no host fits, and reports it: kube-scheduler's PostFilter.
    pub(crate) fn handle_unschedulable(
        &mut self,
        key: &Key,
        server: Arc<Server>,
        request: &Request,
        why: &str,
        now: Timestamp,
    ) -> Vec<StatusWrite> {
        let released = self.release_nominations_below(request.priority.value);
        let plan = if self.is_in_incomplete_gang(request) {
            None
        } else {
            self.plan_nomination(key, &server, request, now)
        };
        self.account_nominations(&released);
        let no = |reason, message| Observation::no(ConditionType::Scheduled, reason, message);
        let waits = WaitReason::NoHostFits;
        let Some(Plan {
            nomination,
            victims,
        }) = plan
        else {
            let observation = no(Reason::NoHostFits, why.to_owned());
            let report =
                self.report_unscheduled(key.clone(), server, observation, None, waits, now);
            self.account_nomination(key);
            return report.into_iter().collect();
        };
        let observation = match nomination.purpose {
            NominationPurpose::Preemption => no(
                Reason::Preempting,
                format!("{why}. Servers of lower priority are being stopped to make room for it"),
            ),
            NominationPurpose::Waiting => {
                let since = nomination.time.as_ref().map_or(now, |t| t.0);
                let until = since + NOMINATION_TIMEOUT;
                no(
                    Reason::NoHostFits,
                    format!("{why}. Free capacity of a host is reserved for it until {until:.0}"),
                )
            }
        };
        let uid = server.uid().unwrap_or_default();
        let nomination = Some(nomination);
        let report =
            self.report_unscheduled(key.clone(), server, observation, nomination, waits, now);
        self.account_nomination(key);
        let mut writes: Vec<StatusWrite> = report.into_iter().collect();
        for victim in victims {
            writes.extend(self.stop_victim(&victim, &uid, request.priority.value, now));
        }
        writes
    }

    /// The best nomination for a Server that no host fits: its current one while that is of
    /// use.
    fn plan_nomination(
        &mut self,
        key: &Key,
        server: &Server,
        request: &Request,
        now: Timestamp,
    ) -> Option<Plan> {
        let policy = self.placer.policy();
        let preempts =
            policy.preemption == PreemptionPolicy::LowerPriority && request.priority.preempts;
        if preempts && let Some(plan) = self.plan_preemption(server, request, now) {
            return Some(plan);
        }
        if policy.waiting != WaitingPolicy::KeepRoom {
            return None;
        }
        let nomination = self.waiting_nomination(key, server, request, now)?;
        Some(Plan {
            nomination,
            victims: Vec::new(),
        })
    }

    fn plan_preemption(&self, server: &Server, request: &Request, now: Timestamp) -> Option<Plan> {
        let mut candidates = self.candidates(request.priority.value);
        let ignored = &COMPUTE_FILTERS;
        let mut hosts = self.placer.fits_ignoring(&self.snapshot, request, ignored);
        let current = nomination_of(server).filter(|n| n.purpose == NominationPurpose::Preemption);
        if let Some(current) = current {
            let candidate = candidates.get(&current.host);
            let shutdown = candidate.map_or(0, |c| c.shutdown_seconds);
            let until = current.time.as_ref().map_or(now, |t| t.0) + PREEMPTION_TIMEOUT;
            if now >= until + SignedDuration::from_secs(shutdown) {
                // Its victims are chosen already, so that this host would always cost least.
                hosts.retain(|slot| self.snapshot.host_at(*slot).name() != current.host);
            } else if self.is_still_sufficient(current, request, &hosts, &candidates) {
                return Some(Plan {
                    nomination: current.clone(),
                    victims: Vec::new(),
                });
            }
        }
        let (host, victims) = self.cheapest_preemption(request, &hosts, &mut candidates)?;
        Some(Plan {
            nomination: Nomination {
                host,
                purpose: NominationPurpose::Preemption,
                time: Some(Time(now)),
            },
            victims: victims.into_iter().map(|v| v.key).collect(),
        })
    }
}

#[cfg(test)]
mod history_tests;
#[cfg(test)]
mod tests;
