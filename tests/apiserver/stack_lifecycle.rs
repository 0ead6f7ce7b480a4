//! Actions on a complete Stack on a real API server: suspended, resumed, checked, healed, deleted.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper that fails ends its test"
)]

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use pileus_api::names::STACK_UID_LABEL;
use pileus_api::server::RunState;
use pileus_api::{Flavor, KeyPair, Network, Server, Stack};
use pileus_tests::apiserver::{create, until};
use pileus_tests::stacks::{Cloud, is_observed, object_name, ready, resources};
use serde_json::json;

const TEMPLATE: &str = "heat_template_version: 2021-04-16
resources:
  net: {type: OS::Neutron::Net}
  key: {type: OS::Nova::KeyPair, properties: {name: life-key, public_key: ssh-ed25519 AAAA alice}}
  back: {type: OS::Nova::Server, properties: {image: tiny, flavor: small, networks: [{network: {get_resource: net}}]}}
  front:
    type: OS::Nova::Server
    depends_on: back
    properties: {image: tiny, flavor: small, key_name: {get_resource: key}, user_data: '#!/bin/sh', networks: [{network: {get_resource: net}}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_is_suspended_resumed_checked_and_healed() {
    let cloud = Cloud::start().await;
    cloud.stack("life", json!({"template": TEMPLATE})).await;
    let made = cloud.becomes("life", "CREATE_COMPLETE").await;
    let first = resources(&made);
    let servers = cloud.api::<Server>();
    let front = object_name(&first["front"]);

    cloud.change("life", json!({"suspend": true})).await;
    let suspended = cloud.becomes("life", "SUSPEND_COMPLETE").await;
    assert_eq!(ready(&suspended).1, "Suspended");
    let stopped = servers.get(&front).await.unwrap();
    assert_eq!(stopped.spec.run_state, RunState::Stopped);
    assert_eq!(resources(&suspended)["front"].status, "SUSPEND_COMPLETE");
    // A new template has to wait, which is reported.
    let other = TEMPLATE.replace("small", "large");
    cloud.change("life", json!({"template": other})).await;
    let api = cloud.api::<Stack>();
    until(
        &api,
        "life",
        "says that it is suspended",
        |stack: &Stack| is_observed(stack) && ready(stack).2.contains("spec.suspend"),
    )
    .await;
    cloud
        .change("life", json!({"template": TEMPLATE, "suspend": false}))
        .await;
    cloud.becomes("life", "RESUME_COMPLETE").await;
    let running = servers.get(&front).await.unwrap();
    assert_eq!(running.spec.run_state, RunState::Running);
    assert_eq!(running.uid(), first["front"].physical_id);

    cloud.change("life", json!({"checkRequestedAt": "1"})).await;
    cloud.becomes("life", "CHECK_COMPLETE").await;

    // Somebody deletes one thing and changes another.
    let keys = cloud.api::<KeyPair>();
    keys.delete("life-key", &DeleteParams::default())
        .await
        .unwrap();
    let back = object_name(&first["back"]);
    let patch = Patch::Merge(json!({"spec": {"runState": "Stopped"}}));
    servers
        .patch(&back, &PatchParams::default(), &patch)
        .await
        .unwrap();
    cloud.change("life", json!({"checkRequestedAt": "2"})).await;
    let checked = cloud.becomes("life", "CHECK_FAILED").await;
    let rows = resources(&checked);
    let why = |name: &str| rows[name].reason.clone().unwrap_or_default();
    assert!(why("key").contains("is missing"), "{rows:#?}");
    assert!(why("back").contains("spec.runState"), "{rows:#?}");
    assert_eq!(rows["net"].status, "CHECK_COMPLETE");
    assert!(ready(&checked).2.contains("healRequestedAt"));

    cloud.change("life", json!({"healRequestedAt": "1"})).await;
    let healed = cloud.becomes("life", "UPDATE_COMPLETE").await;
    let rows = resources(&healed);
    assert_ne!(rows["key"].physical_id, first["key"].physical_id);
    assert_eq!(rows["net"].physical_id, first["net"].physical_id);
    assert!(keys.get_opt("life-key").await.unwrap().is_some());
    assert_ne!(rows["back"].physical_id, first["back"].physical_id);
    cloud.change("life", json!({"checkRequestedAt": "3"})).await;
    cloud.becomes("life", "CHECK_COMPLETE").await;
    cloud.delete("life").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_objects_outlive_their_stack_without_its_label() {
    let cloud = Cloud::start().await;
    let template = "heat_template_version: 2021-04-16
resources:
  net: {type: OS::Neutron::Net, deletion_policy: Retain}
  key: {type: OS::Nova::KeyPair, properties: {name: goes, public_key: ssh-ed25519 AAAA alice}}
";
    cloud.stack("kept", json!({"template": template})).await;
    let made = cloud.becomes("kept", "CREATE_COMPLETE").await;
    let net = object_name(&resources(&made)["net"]);
    // A retained object has no owner reference: a foreground deletion would delete it.
    let networks = cloud.api::<Network>();
    let keys = cloud.api::<KeyPair>();
    let uid = made.uid().unwrap();
    let own = networks.get(&net).await.unwrap();
    assert!(own.owner_references().is_empty());
    assert_eq!(own.labels()[STACK_UID_LABEL], uid);
    let key = keys.get("goes").await.unwrap();
    assert_eq!(key.owner_references()[0].uid, uid);
    let kept = template.replace("{name: goes", "{name: stays");
    let stays = kept.replace("KeyPair,", "KeyPair, deletion_policy: Retain,");
    for template in [kept, stays] {
        cloud.change("kept", json!({"template": template})).await;
        until(&keys, "stays", "is owned, or not", |key: &KeyPair| {
            key.owner_references().is_empty() == template.contains("KeyPair, deletion_policy")
        })
        .await;
        cloud.becomes("kept", "UPDATE_COMPLETE").await;
    }
    let back = template.replace("{name: goes", "{name: gone");
    cloud.change("kept", json!({"template": back})).await;
    until(&keys, "gone", "is made", |_: &KeyPair| true).await;
    let done = cloud.becomes("kept", "UPDATE_COMPLETE").await;
    assert_eq!(object_name(&resources(&done)["net"]), net);
    let stays = keys.get("stays").await.unwrap();
    assert!(!stays.labels().contains_key(STACK_UID_LABEL));
    let stacks = cloud.api::<Stack>();
    stacks
        .delete("kept", &DeleteParams::default())
        .await
        .unwrap();
    let kept = until(&networks, &net, "is let go", |network: &Network| {
        !network.labels().contains_key(STACK_UID_LABEL)
    })
    .await;
    assert!(!kept.labels().contains_key(STACK_UID_LABEL));
    while stacks.get_opt("kept").await.unwrap().is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(
        cloud
            .api::<KeyPair>()
            .get_opt("gone")
            .await
            .unwrap()
            .is_none()
    );
    assert!(networks.get_opt(&net).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn references_of_a_server_may_be_missing_only_for_a_while() {
    let cloud = Cloud::start().await;
    let template = TEMPLATE.replace("flavor: small, key", "flavor: later, key");
    cloud.stack("late", json!({"template": template})).await;
    let failed = cloud.becomes("late", "CREATE_FAILED").await;
    let why = resources(&failed)["front"].reason.clone().unwrap();
    assert!(
        why.starts_with("properties.flavor: The Flavor (later) could not be found"),
        "{why}"
    );
    assert!(why.contains("healRequestedAt"), "{why}");
    assert!(
        ready(&failed).2.contains("The Flavor (later)"),
        "{failed:#?}"
    );

    let flavors: Api<Flavor> = Api::all(cloud.server.client());
    let spec = json!({"vcpus": 1, "memory": "64Mi", "disk": "1Gi"});
    create(
        &flavors,
        json!({"metadata": {"name": "later"}, "spec": spec}),
    )
    .await;
    cloud.change("late", json!({"healRequestedAt": "1"})).await;
    cloud.becomes("late", "UPDATE_COMPLETE").await;
    cloud.delete("late").await;

    // An object that is created within the grace period causes no failure.
    flavors
        .delete("later", &DeleteParams::default())
        .await
        .unwrap();
    cloud.stack("soon", json!({"template": template})).await;
    let api = cloud.api::<Stack>();
    until(&api, "soon", "waits for the flavor", |stack: &Stack| {
        let row = resources(stack).remove("front");
        row.is_some_and(|row| row.reason.is_some_and(|why| why.contains("Flavor")))
    })
    .await;
    let spec = json!({"vcpus": 1, "memory": "64Mi", "disk": "1Gi"});
    create(
        &flavors,
        json!({"metadata": {"name": "later"}, "spec": spec}),
    )
    .await;
    cloud.becomes("soon", "CREATE_COMPLETE").await;
    cloud.delete("soon").await;
}
