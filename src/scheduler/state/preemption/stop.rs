//! Stopping a victim and starting it again.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::COMPUTE_FILTERS;
use crate::objects::catalogue::Key;
use crate::state::decide::{conditions, refusals};
use crate::state::queue::WaitReason;
use crate::state::{Decision, SchedulerStatus, State, StatusWrite};
use pileus_api::conditions::{ConditionType, Observation};
use pileus_api::server::Preemption;
use pileus_api::{Reason, Server};

impl State {
    /// Stops a Server for the one with the uid `preemptor`.
    pub(super) fn stop_victim(
        &mut self,
        key: &Key,
        preemptor: &str,
        priority: i32,
        now: Timestamp,
    ) -> Option<StatusWrite> {
        let server = self.servers.get(key)?.clone();
        let placement = server.status.as_ref()?.placement.clone()?;
        let message = format!(
            "stopped: a Server of priority {priority} needs its vCPUs and memory on {host}, and \
             its own priority is {own}. It is started again when {host} has free capacity for it",
            host = placement.host,
            own = self.catalogue.priority(&server).value
        );
        let observation = Observation::yes(ConditionType::Scheduled, Reason::Preempted, message);
        let (conditions, _) = conditions(&server, observation, now);
        let status = SchedulerStatus {
            placement: Some(placement),
            refusals: refusals(&server),
            preemption: Some(Preemption {
                by: preemptor.to_owned(),
                priority,
                time: Some(Time(now)),
            }),
            nomination: None,
            conditions,
        };
        Some(self.start_write(key.clone(), server, status, Decision::Preempted))
    }

    /// Whether the host of a Server that was stopped for another has vCPUs and memory for it
    /// again.
    pub(crate) fn fits_again(&mut self, key: &Key, server: &Server) -> bool {
        let Some(placement) = server.status.as_ref().and_then(|s| s.placement.as_ref()) else {
            return false;
        };
        // The Server's own allocation must not count against it. Its disk never left the host.
        self.snapshot.release(&server.uid().unwrap_or_default());
        let host = self.snapshot.host(&placement.host);
        let fits = host.is_some_and(|host| {
            let needs = [placement.claim.vcpus, placement.claim.memory_mib];
            let mut parts = needs.into_iter().enumerate();
            parts.all(|(part, need)| {
                !self.placer.has_filter(COMPUTE_FILTERS[part]) || need <= host.free(part)
            })
        });
        let capacity_freed = self.capacity_freed;
        self.account(key);
        self.capacity_freed = capacity_freed;
        fits
    }

    /// Starts a Server again that was stopped for another, if it fits again.
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
        let message = format!("started again: {} has free capacity for it", placement.host);
        Some(self.write_placement(key, server, placement, message, Decision::Resumed, now))
    }
}
