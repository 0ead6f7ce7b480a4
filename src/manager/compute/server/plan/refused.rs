//! Instances that hosts have refused are deleted once the scheduler has withdrawn the placement:
//! their hosts hold nothing of them, and the Server is placed again when they are gone.

use kube::ResourceExt;

use super::{Observed, Step};
use pileus_api::conditions::{self, ConditionType};
use pileus_api::instance::OnDeletion;
use pileus_api::names::{host_namespace, instance_name};
use pileus_api::{Instance, Reason, Server};
use pileus_kube_ext::finalize;

/// (namespace, name) of Instances that hosts refused and whose placement the scheduler withdrew.
#[must_use]
pub fn withdrawn(server: &Server) -> Vec<(String, String)> {
    let Some(status) = &server.status else {
        return Vec::new();
    };
    let uid = server.uid().unwrap_or_default();
    let placed = |host: &str, epoch: i64| {
        let placement = status.placement.as_ref();
        placement.is_some_and(|p| p.host == host && p.epoch == epoch)
    };
    let refusals = status.refusals.iter().filter(|r| !placed(&r.name, r.epoch));
    let names = refusals.map(|r| (host_namespace(&r.name), instance_name(&uid, r.epoch)));
    names.collect()
}

/// First the host is ordered to remove what it may have accepted and not reported yet, for
/// the Server is placed elsewhere once the Instance is gone; then the Instance is deleted. Both
/// only in the version that was observed: one on which its host has reported meanwhile stays.
pub(super) fn clear(server: &Server, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    for instance in &observed.withdrawn {
        let namespace = instance.namespace().unwrap_or_default();
        let name = instance.name_any();
        if finalize::is_deleting(instance) {
            // The last pass may have ended between the two.
            steps.push(Step::DeleteGuestData { namespace, name });
        } else if !is_refused(server, instance) {
            // Its host accepted it after all.
        } else if instance.spec.on_deletion == OnDeletion::Remove {
            steps.push(Step::DeleteInstance {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: instance.uid().unwrap_or_default(),
                version: instance.resource_version(),
            });
            steps.push(Step::DeleteGuestData { namespace, name });
        } else {
            let mut ordered = instance.clone();
            ordered.spec.on_deletion = OnDeletion::Remove;
            steps.push(Step::UpdateInstance(Box::new(ordered)));
        }
    }
    steps
}

/// Whether it is still as it was when its host refused it: nothing of it exists.
fn is_refused(server: &Server, instance: &Instance) -> bool {
    let status = instance.status.as_ref();
    let said = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let ready = conditions::find(said, ConditionType::Ready);
    Some(&instance.spec.server.uid) == server.uid().as_ref()
        && status.is_some_and(|s| s.realized != Some(true))
        && ready.is_some_and(|r| r.reason == Reason::HostRefused.as_str())
}
