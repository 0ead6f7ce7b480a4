//! Reconciles Hosts: creates their namespace, and reports by their heartbeat whether their agent
//! is alive. Nothing else follows from a lost heartbeat: the VMs of the host may still run.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::caches::Caches;
use crate::{Manager, Outcome, ensure_namespace};
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::names::{HOST_NAMESPACE_PREFIX, MANAGER, host_namespace};
use pileus_api::{Host, Reason, validation};
use pileus_kube_ext::lease::{HEARTBEAT, HEARTBEAT_SECONDS};
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::triggers::Triggers;

/// The last heartbeat of each host, and when it was seen *here*: clocks of two machines
/// are never compared.
static HEARTBEATS: LazyLock<Mutex<HashMap<String, (String, Instant)>>> =
    LazyLock::new(Mutex::default);

/// What wakes the controller of Hosts.
#[must_use]
pub fn triggers(caches: &Caches) -> Triggers<Host> {
    Triggers::controller(&caches.hosts).woken_by(&caches.leases, |lease: &Lease| {
        let namespace = lease.namespace().unwrap_or_default();
        let host = namespace.strip_prefix(HOST_NAMESPACE_PREFIX);
        host.map(ObjectRef::new)
    })
}

/// One pass.
///
/// # Errors
/// When the API server refused or did not answer.
pub async fn reconcile(host: Arc<Host>, manager: Arc<Manager>) -> Outcome {
    let name = host.name_any();
    let namespace = host_namespace(&name);
    let lease = manager.caches.leases.get(&namespace, HEARTBEAT);
    if lease.is_none() {
        ensure_namespace(&manager.context.client, &namespace).await?;
    }
    let lasts = Duration::from_secs(HEARTBEAT_SECONDS.unsigned_abs().into());
    let beat = lease.and_then(|l| l.resource_version());
    let left = beat.as_ref().and_then(|beat| {
        let mut heartbeats = HEARTBEATS.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, at) = heartbeats
            .entry(name.clone())
            .or_insert_with(|| (beat.clone(), Instant::now()));
        if last != beat {
            *last = beat.clone();
            *at = Instant::now();
        }
        lasts
            .checked_sub(at.elapsed())
            .filter(|left| !left.is_zero())
    });
    let reported = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let mut ready = ready(&name, beat.is_some(), left.is_some(), reported);
    // A host that does not report is worse than one with an invalid spec, and nothing may hide
    // that.
    if ready.status == Some(true)
        && let Err(message) = validation::host(&host.spec)
    {
        ready = Observation::no(ConditionType::Ready, Reason::InvalidSpec, message);
    }
    let status = json!({
        "conditions": conditions::merge(reported, [ready.clone()], host.metadata.generation, Timestamp::now()),
    });
    let api: Api<Host> = Api::all(manager.context.client.clone());
    if apply_status(&api, MANAGER, &*host, &status).await? {
        manager.context.metrics.status_written("host");
        if ready.status == Some(true) {
            manager
                .context
                .events
                .normal(&*host, ready.reason, "Watch", ready.message);
        } else {
            manager
                .context
                .events
                .warning(&*host, ready.reason, "Watch", ready.message);
        }
    }
    // Just after the heartbeat would be lost; a new one wakes us before.
    Ok(left.map(|left| left + Duration::from_millis(500)))
}

/// A Host is ready when its agent is alive and it can take Servers.
fn ready(
    name: &str,
    has_heartbeat: bool,
    is_alive: bool,
    reported: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
) -> Observation {
    use ConditionType::Ready;
    if !has_heartbeat {
        return Observation::unknown(
            Ready,
            Reason::Pending,
            "its agent has not been heard from yet",
        );
    }
    if !is_alive {
        return Observation::unknown(
            Ready,
            Reason::HeartbeatLost,
            format!("the agent of {name} has not been heard from for {HEARTBEAT_SECONDS} s"),
        );
    }
    for needed in [
        ConditionType::HypervisorAvailable,
        ConditionType::NetworkAvailable,
        ConditionType::DiskAvailable,
    ] {
        match conditions::find(reported, needed) {
            Some(c) if c.status == "True" => {}
            Some(c) => {
                let reason = Reason::parse(&c.reason).unwrap_or(Reason::Retrying);
                return Observation::no(Ready, reason, c.message.clone());
            }
            None => {
                return Observation::unknown(
                    Ready,
                    Reason::Pending,
                    "its agent has not reported its state yet",
                );
            }
        }
    }
    Observation::yes(
        Ready,
        Reason::Heartbeat,
        "its agent answers and can run Servers",
    )
}
