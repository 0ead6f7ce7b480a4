//! A host counts as alive only when its heartbeat is seen.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use pileus_api::{ConditionType, Host, conditions};
use pileus_tests::apiserver::{TestServer, create, until};
use pileus_tests::servers::{patch_status, start_manager};
use serde_json::json;

/// A condition that was reported.
fn condition(kind: &str, status: &str, reason: &str) -> serde_json::Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "as reported",
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_sight_of_an_old_lease_is_no_heartbeat() {
    let server = TestServer::start().await;
    let client = server.client();
    let hosts: Api<Host> = Api::all(client.clone());
    for (name, ready) in [("dead", "Unknown"), ("well", "True")] {
        let namespace = pileus_api::names::host_namespace(name);
        server.namespace(&namespace).await;
        create(&hosts, json!({"metadata": {"name": name}, "spec": {}})).await;
        let reported = json!({"conditions": [
            condition("Ready", ready, "Heartbeat"),
            condition("HypervisorAvailable", "True", "Ok"),
            condition("NetworkAvailable", "True", "Ok"),
            condition("DiskAvailable", "True", "Ok"),
        ]});
        patch_status(&hosts, name, reported).await;
        let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
        create(
            &leases,
            json!({"metadata": {"name": "pileus-agent"}, "spec": {
                "holderIdentity": name, "leaseDurationSeconds": 40,
                "renewTime": "2026-01-01T00:00:00.000000Z"}}),
        )
        .await;
    }
    let (stop, manager) = start_manager(&server).await;
    let ready = |host: &Host| {
        let reported = &host.status.as_ref().unwrap().conditions;
        let ready = conditions::find(reported, ConditionType::Ready).unwrap();
        (ready.status.clone(), ready.reason.clone())
    };
    let is = |host: &Host, status: &str, reason: &str| {
        ready(host) == (status.to_owned(), reason.to_owned())
    };
    until(&hosts, "dead", "is not alive", |host| {
        is(host, "Unknown", "HeartbeatLost")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let well = hosts.get("well").await.unwrap();
    assert!(is(&well, "True", "Heartbeat"), "{:?}", ready(&well));
    let dead = hosts.get("dead").await.unwrap();
    assert!(is(&dead, "Unknown", "HeartbeatLost"), "{:?}", ready(&dead));

    let namespace = pileus_api::names::host_namespace("dead");
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let renewed = json!({"spec": {"renewTime": "2026-01-01T00:00:10.000000Z"}});
    let params = PatchParams::default();
    let patch = Patch::Merge(renewed);
    leases.patch("pileus-agent", &params, &patch).await.unwrap();
    until(&hosts, "dead", "is alive again", |host| {
        is(host, "True", "Heartbeat")
    })
    .await;
    stop.cancel();
    manager.await.unwrap().unwrap();
}
