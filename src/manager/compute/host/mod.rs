//! Reconciles Hosts: creates their namespace, and reports by their heartbeat whether their agent
//! is alive. Nothing else follows from a lost heartbeat: the VMs of the host may still run.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;

use plan::{Heartbeat, Pulse};

use crate::caches::Caches;
use crate::{Manager, Outcome, ensure_namespace};
use pileus_api::conditions::{self, ConditionType, Observation};
use pileus_api::names::{HOST_NAMESPACE_PREFIX, MANAGER, host_namespace};
use pileus_api::{Host, Reason, validation};
use pileus_kube_ext::lease::HEARTBEAT;
use pileus_kube_ext::report::apply_status;
use pileus_kube_ext::triggers::Triggers;

/// The last heartbeat of each host, as seen *here*: clocks of two machines are never compared.
static HEARTBEATS: LazyLock<Mutex<HashMap<String, Heartbeat>>> = LazyLock::new(Mutex::default);

/// Forgets what was seen before this process led: it did not watch all the time since.
pub fn forget_heartbeats() {
    let mut heartbeats = HEARTBEATS.lock().unwrap_or_else(PoisonError::into_inner);
    heartbeats.clear();
}

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
    let reported = host
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let pulse = match lease.and_then(|lease| lease.resource_version()) {
        None => Pulse::None,
        Some(version) => {
            let now = Instant::now();
            let mut heartbeats = HEARTBEATS.lock().unwrap_or_else(PoisonError::into_inner);
            if heartbeats.len() > manager.caches.hosts.len() {
                heartbeats.retain(|name, _| manager.caches.hosts.get("", name).is_some());
            }
            let known = heartbeats.get(&name).cloned();
            let heartbeat = Heartbeat::seen(known, version, plan::was_alive(reported), now);
            let pulse = heartbeat.pulse(now);
            heartbeats.insert(name.clone(), heartbeat);
            pulse
        }
    };
    let mut ready = plan::ready(&name, pulse, reported);
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
    Ok(match pulse {
        Pulse::Alive(left) => Some(left + Duration::from_millis(500)),
        Pulse::None | Pulse::NotSeen | Pulse::Lost => None,
    })
}
